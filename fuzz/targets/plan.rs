//! A worker reads a plan or says why not, whatever the ConfigMap holds; what it reads comes back when it is written again.
#![no_main]

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use lp_exporter::volumes::node_plan::NodePlan;

fuzz_target!(|bytes: &[u8]| {
    let _ = NodePlan::decode(bytes);
    // A fuzzer hardly finds the sum at the end of a gzip file.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("into memory");
    let Ok(plan) = NodePlan::decode(&encoder.finish().expect("into memory")) else {
        return;
    };
    assert!(plan.volumes.iter().all(|volume| volume.base < plan.bases.len()));
    if let Ok(encoded) = plan.encode() {
        assert_eq!(NodePlan::decode(&encoded).expect("we wrote it"), plan);
    }
});
