"""What is given beside a URL, parted between the pool and its connector; and what was meant for the other is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from millpond._core.settings import ALIASES, Options, meant_by

T = TypeVar("T")

__all__ = ["parted"]


def parted(url: str, options: Mapping[str, object], connector_for: Callable[..., T]) -> tuple[T, dict[str, object]]:
    """Return the connector for a URL, and which of the options are settings of the pool.

    Raises `InvalidURL` for a setting of the pool in the URL's query, TypeError for an option that neither knows.
    """
    from millpond.connectors.urls import InvalidURL, parameters_of

    known = Options.__annotations__
    for name in parameters_of(url):
        setting = name if name in known else ALIASES.get(name)
        if setting is not None:
            what = "a setting of the pool" if setting == name else f"called {setting} here"
            raise InvalidURL(f"{name} is {what}, which does not stand in the URL: from_url(url, {setting}=...)")
    settings = {name: value for name, value in options.items() if name in known}
    others = {name: value for name, value in options.items() if name not in known}
    try:
        return connector_for(url, **others), settings
    except TypeError as error:
        refusal = error
    for name in others:
        if f"'{name}'" in str(refusal) and (meant := meant_by(name, 0.85)):
            raise TypeError(f"{refusal}; did you mean {meant}, a setting of the pool?")
    raise refusal
