"""The gateway's measurements: turns, process, bounded structures, alarms; no streamed event."""
