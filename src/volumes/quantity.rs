//! Quantities of Kubernetes (`1Gi`, `1.5G`, `1e8`, `500m`) as a whole number of bytes.
//!
//! The grammar and the result are those of `resource.ParseQuantity` and `Quantity.Value` of k8s.io/apimachinery, which
//! tests/differential.rs compares with recorded answers. Everything is whole-number arithmetic: no float, and time linear
//! in the length of the text, whatever its exponent. It differs from Kubernetes on purpose where an answer would be a
//! number that nobody meant:
//! - a text without a single digit (`+`, `.`) is malformed here, and 0 there;
//! - a decimal quantity above `i64::MAX` is too large here; there `Value` is 0 or wraps (an exponent is even cut to 32
//!   bits). Binary ones are capped at `i64::MAX` in both.

use thiserror::Error;

/// The largest quantity: Kubernetes keeps an `int64`.
const MAX_BYTES: u64 = i64::MAX.unsigned_abs();

/// How much of a hostile text an error repeats, in characters: enough to find it, too little to flood a log.
const EXCERPT_MAX_CHARS: usize = 64;

/// Why a text is no capacity. Each names the text, cut to a bounded length.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// There is no text at all.
    #[error("cannot read an empty quantity: write a number and a suffix, such as 10Gi")]
    Empty,
    /// The text does not begin with a number.
    #[error("cannot read {text:?} as a quantity: it does not begin with a number, write one such as 10Gi")]
    Malformed {
        /// The beginning of the text.
        text: String,
    },
    /// What follows the number is neither a suffix nor a decimal exponent.
    #[error(
        "cannot read {text:?} as a quantity: what follows the number is no suffix, use one of n u m k M G T P E Ki Mi Gi Ti Pi Ei or an exponent such as e9"
    )]
    UnknownSuffix {
        /// The beginning of the text.
        text: String,
    },
    /// The quantity is below zero, which no capacity can be.
    #[error("cannot use {text:?} as a capacity: it is negative")]
    Negative {
        /// The beginning of the text.
        text: String,
    },
    /// The quantity is decimal and above `i64::MAX`.
    #[error("cannot use {text:?} as a capacity: it is above {MAX_BYTES} bytes, the most that Kubernetes can count")]
    TooLarge {
        /// The beginning of the text.
        text: String,
    },
}

/// Reads a quantity such as `10Gi` and returns its value in bytes: fractions of a byte are rounded up, and a binary
/// quantity above `i64::MAX` is capped there, both as `Quantity.Value` does.
///
/// # Errors
/// [`QuantityError`] if the text is no quantity, negative, or decimal and above `i64::MAX`.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Empty);
    }
    let parts = Parts::split(text).ok_or_else(|| QuantityError::Malformed { text: excerpt(text) })?;
    let unit = Unit::parse(parts.suffix).ok_or_else(|| QuantityError::UnknownSuffix { text: excerpt(text) })?;
    if parts.is_negative && parts.digits().any(|digit| digit != 0) {
        return Err(QuantityError::Negative { text: excerpt(text) });
    }
    match (parts.ceil_bytes(unit), unit) {
        (Some(bytes), _) => Ok(bytes),
        (None, Unit::Binary { .. }) => Ok(MAX_BYTES),
        (None, Unit::Decimal { .. }) => Err(QuantityError::TooLarge { text: excerpt(text) }),
    }
}

/// The beginning of a hostile text, for an error: at most [`EXCERPT_MAX_CHARS`] characters and a mark that it was cut.
/// To be printed with `{:?}`, which escapes control characters.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What a suffix multiplies the number with.
#[derive(Debug, Clone, Copy)]
enum Unit {
    /// 10 to the power of the exponent.
    Decimal { exponent: i64 },
    /// 2 to the power of `shift`, which is at most 60.
    Binary { shift: u32 },
}

impl Unit {
    fn parse(suffix: &str) -> Option<Self> {
        let unit = match suffix {
            "" => Self::Decimal { exponent: 0 },
            "n" => Self::Decimal { exponent: -9 },
            "u" => Self::Decimal { exponent: -6 },
            "m" => Self::Decimal { exponent: -3 },
            "k" => Self::Decimal { exponent: 3 },
            "M" => Self::Decimal { exponent: 6 },
            "G" => Self::Decimal { exponent: 9 },
            "T" => Self::Decimal { exponent: 12 },
            "P" => Self::Decimal { exponent: 15 },
            "E" => Self::Decimal { exponent: 18 },
            "Ki" => Self::Binary { shift: 10 },
            "Mi" => Self::Binary { shift: 20 },
            "Gi" => Self::Binary { shift: 30 },
            "Ti" => Self::Binary { shift: 40 },
            "Pi" => Self::Binary { shift: 50 },
            "Ei" => Self::Binary { shift: 60 },
            _ => Self::Decimal {
                exponent: suffix.strip_prefix(['e', 'E'])?.parse().ok()?,
            },
        };
        Some(unit)
    }
}

/// A quantity taken apart. `whole` and `fraction` hold digits only, and one of them at least one.
struct Parts<'text> {
    is_negative: bool,
    whole: &'text str,
    fraction: &'text str,
    suffix: &'text str,
}

impl<'text> Parts<'text> {
    /// Splits without judging the suffix; nothing if there is no digit.
    fn split(text: &'text str) -> Option<Self> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let (whole, rest) = split_digits(unsigned);
        let (fraction, suffix) = rest.strip_prefix('.').map_or(("", rest), split_digits);
        let has_digit = !whole.is_empty() || !fraction.is_empty();
        has_digit.then_some(Self {
            is_negative: text.starts_with('-'),
            whole,
            fraction,
            suffix,
        })
    }

    /// Every digit's value, from the most significant on.
    fn digits(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        self.whole
            .bytes()
            .chain(self.fraction.bytes())
            .map(|digit| u64::from(digit - b'0'))
    }

    /// The number times its unit, rounded up to whole bytes; nothing if that is above [`MAX_BYTES`].
    fn ceil_bytes(&self, unit: Unit) -> Option<u64> {
        let (exponent, shift) = match unit {
            Unit::Decimal { exponent } => (exponent, 0),
            Unit::Binary { shift } => (0, shift),
        };
        // A decimal exponent only moves the point between the digits, so nothing has to be multiplied for it.
        let digit_count = self.whole.len() + self.fraction.len();
        let point = i64::try_from(self.whole.len()).ok()?.saturating_add(exponent).max(0);
        let point = usize::try_from(point).unwrap_or(usize::MAX);
        let whole = read_whole(self.digits().take(point), point.saturating_sub(digit_count))?;
        let fraction_count = digit_count.saturating_sub(point);
        let carry = multiply_fraction(self.digits().rev().take(fraction_count), shift);
        let bytes = (u128::from(whole) << shift) + u128::from(carry);
        u64::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_BYTES)
    }
}

/// The leading ASCII digits and what follows them.
fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len())
}

/// The digits, then so many zeros, as a number; nothing if it is above [`MAX_BYTES`].
fn read_whole(digits: impl Iterator<Item = u64>, zero_count: usize) -> Option<u64> {
    let append = |whole: u64, digit: u64| {
        whole
            .checked_mul(10)?
            .checked_add(digit)
            .filter(|whole| *whole <= MAX_BYTES)
    };
    let mut whole = 0;
    for digit in digits {
        whole = append(whole, digit)?;
    }
    if whole == 0 {
        // `0e2147483647` has two thousand million zeros to append.
        return Some(0);
    }
    for _ in 0..zero_count {
        whole = append(whole, 0)?;
    }
    Some(whole)
}

/// The digits behind the point, given from the last one on, times 2 to the power of `shift`, rounded up. This is the
/// multiplication taught at school: exact for any number of digits, and no intermediate is above 10 × 2⁶⁰.
fn multiply_fraction(digits_from_last: impl Iterator<Item = u64>, shift: u32) -> u64 {
    let mut carry = 0;
    let mut is_exact = true;
    for digit in digits_from_last {
        let product = (digit << shift) + carry;
        is_exact &= product.is_multiple_of(10);
        carry = product / 10;
    }
    carry + u64::from(!is_exact)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: Result<u64, QuantityError>) {
        assert_eq!(parse_bytes(text), expected, "{:?}", excerpt(text));
    }

    #[test]
    fn reads_quantities() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("1000", 1000),
            ("+7", 7),
            ("-0", 0),
            ("-0.000Gi", 0),
            ("1Ki", 1 << 10),
            ("1Gi", 1 << 30),
            ("5G", 5_000_000_000),
            ("100M", 100_000_000),
            ("1.5Gi", 1_610_612_736),
            ("1e8", 100_000_000),
            ("1E8", 100_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("12e-1", 2),
            ("500m", 1),
            ("1500m", 2),
            ("1n", 1),
            ("1.", 1),
            (".5", 1),
            ("0.1Ki", 103),
            ("7Ei", 7 << 60),
            ("0.00000000000000000001Ei", 1),
            ("9223372036854775807", MAX_BYTES),
            ("9223372036854775806.1", MAX_BYTES),
            ("9223372036854775807000e-3", MAX_BYTES),
            // Binary quantities are capped.
            ("8Ei", MAX_BYTES),
            ("9223372036854775807.5Ki", MAX_BYTES),
            ("99999999999999999999999Ei", MAX_BYTES),
            // Exponents that would take all memory if they were multiplied out.
            ("0e9223372036854775807", 0),
            ("1e-9223372036854775808", 1),
            ("1.00000000000000000000e0", 1),
        ] {
            check(text, Ok(bytes));
        }
    }

    #[test]
    fn refuses_what_is_no_capacity() {
        check("", Err(QuantityError::Empty));
        for text in ["abc", " 1", "Gi", "+", "-", ".", "--1", "+-1", "∞", "١"] {
            check(text, Err(QuantityError::Malformed { text: text.to_owned() }));
        }
        for text in [
            "1 ",
            "1 Gi",
            "1Gi\n",
            "0x10",
            "1.2.3",
            "1_000",
            "1,5",
            "1e5.5",
            "1e",
            "1K",
            "1kI",
            "1ki",
            "1GB",
            "1GiG",
            "1ee5",
            "1+5",
            "1m-3",
            "1e+",
            "1e+-5",
            "1e٥",
            "1e9223372036854775808",
            "1é",
        ] {
            check(text, Err(QuantityError::UnknownSuffix { text: text.to_owned() }));
        }
        for text in ["-1", "-1Gi", "-0.1", "-1n", "-1e30"] {
            check(text, Err(QuantityError::Negative { text: text.to_owned() }));
        }
        for text in [
            "9223372036854775808",
            "9223372036854775807.1",
            "10E",
            "1e30",
            "1e9223372036854775807",
            "1e4294967296",
        ] {
            check(text, Err(QuantityError::TooLarge { text: text.to_owned() }));
        }
    }

    #[test]
    fn long_texts_are_read_and_cut_in_errors() {
        let ones = "1".repeat(1_000_000);
        check(&format!("0.{ones}Ei"), Ok(128_102_389_400_760_776)); // ceil(2^60 / 9)
        check(&format!("{ones}Ki"), Ok(MAX_BYTES));
        check(&format!("{ones}e-999999"), Ok(2));
        let error = parse_bytes(&ones)
            .expect_err("a million digits are too many")
            .to_string();
        assert!(error.len() < 300, "{error}");
        let error = parse_bytes(&"é\n".repeat(1000)).expect_err("no digit").to_string();
        assert!(error.len() < 400 && !error.contains('\n'), "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}", near in "[+-]?[0-9.]{0,30}[eEinumkKMGTP+-]{0,3}[0-9]{0,20}") {
            let _ = parse_bytes(&text);
            let _ = parse_bytes(&near);
        }

        #[test]
        fn whole_numbers_survive_a_round_trip(bytes in 0..=MAX_BYTES) {
            prop_assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
            prop_assert_eq!(parse_bytes(&format!("00{bytes}.000")), Ok(bytes));
            prop_assert_eq!(parse_bytes(&format!("{bytes}000m")), Ok(bytes));
        }

        #[test]
        fn fractions_of_a_binary_unit_are_exact(bytes in 0..=1_u64 << 62) {
            // Every multiple of 2^-10 has at most ten decimal places.
            let (whole, rest) = (bytes >> 10, bytes & 1023);
            let places = u128::from(rest) * 10_u128.pow(10) / 1024;
            prop_assert_eq!(parse_bytes(&format!("{whole}.{places:010}Ki")), Ok(bytes));
        }

        #[test]
        fn a_further_digit_rounds_up(bytes in 0..MAX_BYTES, zeros in 0_usize..40) {
            let text = format!("{bytes}.{}1", "0".repeat(zeros));
            prop_assert_eq!(parse_bytes(&text), Ok(bytes + 1));
        }
    }
}
