//! Text from elsewhere, made fit for a line of a log or of a terminal.

use std::io::Write;

/// Characters that turn the direction of what follows: with them a line reads otherwise than it is.
const TURNING: [char; 11] = [
    '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}',
    '\u{2068}', '\u{2069}',
];

/// The first `max_chars` characters, with every control character replaced: names from a cluster or a volume can hold line
/// breaks and escape sequences, and are not to write lines of their own.
pub fn one_line(text: &str, max_chars: usize) -> String {
    let plain = |c: char| {
        if c.is_control() || TURNING.contains(&c) {
            '\u{fffd}'
        } else {
            c
        }
    };
    let mut line: String = text.chars().take(max_chars).map(plain).collect();
    if text.chars().nth(max_chars).is_some() {
        line.push('…');
    }
    line
}

/// Tells something on standard error. Where that cannot be written to, there is nobody to tell.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_and_replaced() {
        for (text, max_chars, expected) in [
            ("", 3, ""),
            ("abc", 3, "abc"),
            ("abcd", 3, "abc…"),
            (
                "a\nb\r\u{1b}[31m\u{9b}\t",
                20,
                "a\u{fffd}b\u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}",
            ),
            ("äöü", 2, "äö…"),
            ("a\u{202e}b", 3, "a\u{fffd}b"),
        ] {
            assert_eq!(one_line(text, max_chars), expected, "{text:?}");
        }
    }
}
