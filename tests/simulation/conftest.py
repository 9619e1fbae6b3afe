"""These tests run beside others on few cores: time is no verdict."""

from hypothesis import settings

settings.register_profile("schemahub", deadline=None)
settings.load_profile("schemahub")
