"""Techniques around any task: conversion of trained attention, by distillation."""
