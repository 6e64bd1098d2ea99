"""The gateway's measurements: turns, process, bounded structures, alarms."""
