"""Networks, one file per architecture, each built from one frozen config."""
