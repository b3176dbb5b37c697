//! A path has a normal form, which is its own normal form, or a reason why not; and it lies below one base at most.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lp_exporter::volumes::path::{BasePaths, Located, normalize};

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let path = lines.next().unwrap_or_default();
    let Ok(normal) = normalize(path) else {
        return;
    };
    assert_eq!(
        normalize(&normal).as_ref(),
        Ok(&normal),
        "the normal form of {path:?} has another"
    );
    assert!(
        normal.starts_with('/') && !normal.ends_with('/') && !normal.contains("//"),
        "{normal:?}"
    );
    assert!(
        normal.split('/').all(|component| component != "." && component != ".."),
        "{normal:?}"
    );
    let Ok(bases) = BasePaths::new(lines) else {
        return;
    };
    match bases.find(&normal) {
        Located::Beneath { base, relative } => {
            assert_eq!(format!("{}/{relative}", bases.as_slice()[base]), normal);
            assert!(!relative.is_empty());
        }
        Located::IsBase { base } => assert_eq!(bases.as_slice()[base], normal),
        Located::Outside => {
            let is_below = |base: &String| normal.starts_with(&format!("{base}/"));
            assert!(
                !bases.as_slice().iter().any(is_below),
                "{normal:?} is below one of {bases:?}"
            );
        }
    }
});
