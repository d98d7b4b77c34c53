"""Diagnosis of models, adapters and this machine: inspect, audit, verify, explain, diff, doctor."""
