"""Mechanisms under the contract, one file each."""
