"""A stand-in for the exchanges' public REST APIs: true protocols and limits over generated trades.

`python -m local.exchange_sim --port 4570` serves http://127.0.0.1:4570/coinbase and /binance, followed
by each exchange's own paths. Inside one process: `with running({...}) as server: server.url`.
"""

from .server import Server, running
from .simulator import Simulator
from .world import World, build_world

__all__ = ["Server", "Simulator", "World", "build_world", "running"]
