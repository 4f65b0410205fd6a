"""Rules of the API and of the library, as pure functions: no IO, no clock, no ``await``."""
