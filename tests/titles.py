"""Titles that would be trouble as the names of files, and that strangers may give."""

from __future__ import annotations

TITLES: list[str] = [
    # Nothing to show.
    "", " ", "\t", "\n", "\x00", "\u200b", "\ufeff", "\u3164", "\u115f\u1160", "\ufe0f",
    "\u00a0\u2003", "\u2028\u2029", "\ud800", "\U000e0001", "\ue000", "\uffff", "\u034f",
    # Dots and blanks.
    ".", "..", "...", "....", ". .", ".. ", " ..", ".hidden", "..hidden", "a.", "a..", "a. .", "a ",
    " a", "a .", ".wav", "..wav", "a.wav", "a.wav.wav", "a.WAV", ".git", ".DS_Store", "\u2026",
    "\uff0e\uff0e", "\u2024\u2024", "\u2025", ".\u200b.", ".\u202e.",
    # Out of the folder.
    "/", "//", "/etc/passwd", "../../etc/passwd", "..\\..\\windows\\win.ini", "a/../../b", "a/b",
    "a\\b", "C:", "C:\\autoexec.bat", "C:a", "c:/a", "\\\\server\\share\\a", "//server/share/a",
    "\\\\?\\C:\\a", "\\\\.\\PhysicalDrive0", "\\\\.\\pipe\\a", "~", "~root", "~/.ssh/id_rsa",
    "file:///etc/passwd", "%2e%2e%2f", "%2f", "..%c0%af", "..\x00/", "a\x00b", "a\x00.wav",
    "..\uff0f..\uff0fa", "..\u2215..\u2215a", "..\u2044a", "..\uff3ca", "..\u2216a", "\ufe68a",
    "\u29f5\u29f8\u29f9", "\u2100", "\u2105", "a\u200b/\u200bb", "/\u0338", "\\\u0301", "/dev/null",
    "/proc/self/mem", "$HOME/a", "%USERPROFILE%\\a", "${PATH}", "`id`", "$(id)", "a;b",
    # Devices, streams and wildcards of Windows.
    "CON", "con", "Con.wav", "CON.tar.gz", "CON .x", "PRN", "AUX", "NUL", "nul.", "nul ", "COM1",
    "COM0", "com9.txt", "LPT1", "LPT0", "lpt9", "COM\u00b9", "LPT\u00b2", "com\u00b3.a", "CONIN$",
    "CONOUT$", "CLOCK$", "cloc\u212a$", "C\u200bON", "\uff23\uff2f\uff2e", "COM\u2074", "AUX:",
    "a:b", "a:$DATA", "a::$DATA", "a:b:$DATA", "a::$INDEX_ALLOCATION", "what?", "*", "*.*",
    "<script>", 'a"b', "a|b", "AC/DC: Live? <1> *2* |3|", "desktop.ini", "Thumbs.db", "$MFT",
    "$Extend", "PROGRA~1", "LONGFI~1", "A~1", "a ~1a2b3c4d", "a~1a2b3c4d5e6f7081",
    # Options, shells, terminals.
    "-", "--", "-rf", "--help", "-o", "a\nb", "a\r\nb", "a\tb", "\x1b[31mred\x1b[0m",
    "\x1b]0;a\x07", "\x9b31m", "a\x08b", "a\x7fb", "a\x85b", "a\u2028b", "'a'", "a b  c", "#a",
    "&a", "!a", "(a)",
    # Directions of writing, and what is not seen.
    "\u202egpj.wav", "a\u202egpj", "\u202aa\u202c", "\u2066a\u2069", "\u200fa", "\u061ca",
    "a\u200db", "a\u200cb", "a\u00adb", "a\u2060b", "a\ufeffb", "a\u180eb", "a\ufff9b\ufffac\ufffb",
    "a\U000e0041b", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\ufffea",
    "\U0010ffff",
    # Forms of the same letters.
    "\u00e9", "e\u0301", "\u212b", "\u00c5", "A\u030a", "\u1e9b\u0323", "\uac00", "\u1100\u1161",
    "\ufb01", "\u00df", "\u1e9e", "SS", "\u0130", "\u0131", "i\u0307", "I", "i", "\u03c3", "\u03c2",
    "\u03a3", "\u017f", "s", "\u212a", "k", "\u1fb3", "\u0391\u0399", "\u01c4", "\u01c5", "\uff21",
    "a", "\u00aa", "\u00bd", "<\u0338", "=\u0338", "\u226e", "\u0958", "\u0f73", "\u1f80\u0345",
    # Marks without a letter, and too many.
    "\u0301", "\u0301a", "\u20dd", "a" + "\u0301" * 499, "\u0301" * 500, "a" + "\u0338" * 300 + "b",
    "Z\u0337\u0321\u0340\u035fa\u0336\u0322\u0358l\u0335\u0328g\u0334\u0345o\u0333" * 20,
    "\u0e01\u0e34\u0e48" * 100, "\u0915\u093f\u094d" * 100, "\u0f40\u0f71\u0f72\u0f74" * 100,
    # Long, in one to four bytes, and longer decomposed.
    "a" * 500, "a" * 10_000, "\u00e9" * 500, "\u96ea" * 500, "\U0001f3b5" * 500, "\uac01" * 500,
    "\u1fa7" * 500, "\U0001d15f" * 500, "\ufdfa" * 500, "." * 500, " ." * 250, "-" * 500, "/" * 500,
    "..\\" * 160, "a " * 250, "a" * 220 + ".", "a" * 200 + " " + "b" * 200, "CON" * 160,
    # Pictures, some of several characters.
    "\U0001f3b5", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\u2764\ufe0f",
    "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3",
    "\U0001f3f4\U000e0067\U000e007f",
    # What is left as it is.
    "Night Drive", "Stra\u00dfe", "\u5922\u306e\u4e2d", "\u4f60\u597d\u5417\uff1f",
    "\u041f\u0440\u0438\u0432\u0435\u0442",
    "Don't Stop (Remix) [2024] #1 & 100% = +1, ok; {a} @b ^c `d` $e!",
]  # fmt: skip
