"""Backups: a broker's data folder at one moment, in another folder, and back again."""
