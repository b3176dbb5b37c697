//! A dump is read or refused, whatever stands in it, and no object of it is lost without a word.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lp_exporter::dump::Dump;

fuzz_target!(|bytes: &[u8]| {
    let Ok(dump) = Dump::read(bytes) else {
        return;
    };
    let volumes = dump.listed.volumes.len() + dump.listed.skipped.len();
    let others: usize = dump.other_kinds.values().sum();
    let read = volumes + dump.claims + dump.listed.nodes.len() + dump.listed.unreadable.len();
    assert_eq!(read + dump.not_needed + others, dump.objects);
});
