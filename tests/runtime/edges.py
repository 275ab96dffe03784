"""Numbers at the edges of what the settings of an edit allow, as text; each is taken or refused in every language."""

from __future__ import annotations

TAKEN: dict[str, tuple[str, ...]] = {
    "temperature": ("5e-324", "1e-320", "1e-46", "1e-40", "1e39", "1.7976931348623157e308", "9223372036854775808"),
    "cfg_scale": ("-0.0", "5e-324", "1.0000000000000002", "1e6", "linear:5e-324,1e6", "cosine:1e6,-0.0"),
    "top_p": ("5e-324", "1e-320", "1e-46", "0.9999999999999999", "1"),
    "top_k": ("0", "1", "2147483648", "9223372036854775808", "18446744073709551616"),
    "seed": ("0", "9223372036854775807", "9223372036854775808", "18446744073709551615"),
    "cfg_interval": (
        "-1", "0", "2147483646", "2147483647", "18446744073709551616", "0,2147483648", "3,18446744073709551616",
        "4294967296,8589934592",
    ),
    "mask_margin": ("0", "2147483648", "18446744073709551616"),
    "speculate": ("2", "62"),
}  # fmt: skip
REFUSED: dict[str, tuple[str, ...]] = {
    "temperature": ("0", "-0.0", "-5e-324", "nan", "inf", "-inf", "1e999", "-1"),
    "cfg_scale": (
        "-5e-324", "nan", "inf", "1000000.0000000001", "1e999", "linear:nan,1", "cosine:1,inf", "linear:-5e-324,1",
        "values:1",
    ),
    "top_p": ("0", "-0.0", "-5e-324", "nan", "inf", "1.0000000000000002", "1e999"),
    "top_k": ("-1", "-9223372036854775809", "nan", "1e3"),
    "seed": ("-1", "18446744073709551616", "nan", "1e3"),
    "cfg_interval": ("-2", "5,5", "5,4", "-1,3", "nan", "18446744073709551616,1", "0,nan"),
    "mask_margin": ("-1", "-9223372036854775809", "nan", "0.5"),
    "speculate": ("0", "-2", "3", "2147483648", "18446744073709551616", "nan"),
    "n": ("0", "-1", "65", "2147483648", "18446744073709551616", "nan"),
}  # fmt: skip
ALIKE: tuple[tuple[str, tuple[str, ...], dict[str, object]], ...] = (
    ("temperature", ("5e-324", "1e-320", "1e-46", "1e-40"), {"greedy": True}),
    ("cfg_scale", ("-0.0", "5e-324"), {"cfg_scale": 1.0}),
    ("top_p", ("5e-324", "1e-320", "1e-46"), {"greedy": True}),
    ("top_k", ("1",), {"greedy": True}),
    ("top_k", ("2147483648", "9223372036854775808", "18446744073709551616"), {"top_k": 0}),
    ("cfg_interval", ("2147483646", "2147483647", "18446744073709551616", "0,2147483648"), {"cfg_interval": -1}),
    ("cfg_interval", ("4294967296,8589934592",), {"cfg_scale": 1.0}),
)
"""Numbers, and settings that give the same tokens."""


def pairs(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(name, text) for name, texts in table.items() for text in texts]


def rounds() -> list[dict[str, str]]:
    """Every number of `TAKEN`, in few edits that have one of each setting."""
    most = max(map(len, TAKEN.values()))
    return [{name: texts[n % len(texts)] for name, texts in TAKEN.items()} for n in range(most)]


def option(name: str, text: str) -> str:
    """The words of a command line, which also take what begins with a minus sign."""
    return f"-n={text}" if name == "n" else f"--{name.replace('_', '-')}={text}"
