"""The settings of the live view."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is watched, and at which address."""

    runs: str = "runs"
    """A run's folder, or one that holds runs; searched two levels deep. `diffusion-sft serve RUNS` is short for it."""
    address: str = "127.0.0.1"
    """A loopback address. No other is taken: whoever reaches the page reads the runs."""
    port: int = 8337
    """0 takes any that is free."""
    refresh_seconds: int = 5
    """How often an open page is read anew."""

    def __post_init__(self) -> None:
        try:
            loopback = ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(
                f"address={self.address}: the live view answers on loopback alone; use 127.0.0.1 or ::1, and ssh -L "
                "to look at it from elsewhere"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {self.port}")
        if not 1 <= self.refresh_seconds <= 3600:
            raise ValueError(f"refresh_seconds must be from 1 to 3600, not {self.refresh_seconds}")
