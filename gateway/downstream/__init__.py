"""The doors clients come in by, and what happens behind them until a turn starts."""
