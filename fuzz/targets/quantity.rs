//! A quantity is read or refused, whatever stands there, and never changes its value by being written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lp_exporter::volumes::quantity::parse_bytes;

fuzz_target!(|text: &str| {
    let Ok(bytes) = parse_bytes(text) else {
        return;
    };
    assert!(
        i64::try_from(bytes).is_ok(),
        "{text:?} has {bytes} bytes, more than Kubernetes counts"
    );
    assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes), "{text:?}, written again");
    if !text.starts_with(['+', '-']) {
        assert_eq!(
            parse_bytes(&format!("+0{text}")),
            Ok(bytes),
            "{text:?} with a sign and a zero before it"
        );
    }
});
