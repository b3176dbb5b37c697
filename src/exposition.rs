//! Metrics in the Prometheus text format, compressed while they are written.
//!
//! One family at a time goes through the encoder into a gzip writer, and a long family in chunks: a registry that
//! holds every metric before the first byte is written takes ten times the memory of the body itself.
//!
//! A Pushgateway refuses a whole body for one series that is in it twice, or for a family of another type than before. So
//! every family is a gauge, is written once, and a series that it has already is left out.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

/// The media type of [`Body::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// One metric family, a gauge: what its samples have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// The name of the metric, with its unit last.
    pub name: &'static str,
    /// What it says, in one line.
    pub help: &'static str,
    /// The names of its labels, in the order in which its samples give the values.
    pub labels: &'static [&'static str],
}

/// The metrics of one push, while they are written.
#[derive(Debug)]
pub struct Exposition {
    gzip: GzEncoder<Vec<u8>>,
    families: HashSet<&'static str>,
    /// Makes of the values of a series' labels a number that no other series has by chance, or by intent.
    fingerprints: RandomState,
}

impl Exposition {
    /// An exposition without any family.
    #[must_use]
    pub fn new() -> Self {
        // Metrics repeat themselves so much that the fastest level loses little.
        Self {
            gzip: GzEncoder::new(Vec::new(), Compression::fast()),
            families: HashSet::new(),
            fingerprints: RandomState::new(),
        }
    }

    /// Writes `family` with `samples`: the values of its labels, in the family's order, and the value. Nothing at all
    /// is written for a family without samples.
    ///
    /// # Panics
    /// If the samples carry another number of labels than the family, which no input can cause.
    pub fn family<const LABELS: usize, Label: AsRef<str>>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = ([Label; LABELS], f64)>,
    ) {
        self.family_with(
            family,
            &[],
            samples.into_iter().map(|(values, value)| (values, &[][..], value)),
        );
    }

    /// As [`Exposition::family`], with labels that are known only now: their names, and their values in each sample.
    ///
    /// # Panics
    /// If the samples carry another number of labels than the family and the names, which no input can cause.
    pub fn family_with<'a, const LABELS: usize, Label: AsRef<str>>(
        &mut self,
        family: &Family,
        names: &[String],
        samples: impl IntoIterator<Item = ([Label; LABELS], &'a [String], f64)>,
    ) {
        assert_eq!(family.labels.len(), LABELS, "label values for {}", family.name);
        let is_new = self.families.insert(family.name);
        debug_assert!(is_new, "{} is written twice", family.name);
        if !is_new {
            tracing::error!(metric = family.name, "a family that is there already is left out");
            return;
        }
        let names: Vec<&str> = family
            .labels
            .iter()
            .copied()
            .chain(names.iter().map(String::as_str))
            .collect();
        let mut written: HashSet<u64> = HashSet::new();
        let fingerprints = &self.fingerprints;
        let mut samples = samples
            .into_iter()
            .filter(|(values, more, _)| {
                let labels: Vec<&str> = values
                    .iter()
                    .map(Label::as_ref)
                    .chain(more.iter().map(String::as_str))
                    .collect();
                let is_new = written.insert(fingerprints.hash_one(&labels));
                if !is_new {
                    tracing::warn!(
                        metric = family.name,
                        ?labels,
                        "a series that is there already is left out"
                    );
                }
                is_new
            })
            .map(|(values, more, value)| {
                let values = values.iter().map(Label::as_ref).chain(more.iter().map(String::as_str));
                metric(&names, values, value)
            })
            .peekable();
        let mut encoded = MetricFamily::default();
        encoded.set_name(family.name.to_owned());
        encoded.set_help(family.help.to_owned());
        encoded.set_field_type(MetricType::GAUGE);
        let mut is_first = true;
        while samples.peek().is_some() {
            encoded.set_metric(samples.by_ref().take(SAMPLES_IN_A_CHUNK).collect());
            let writer = HeaderFilter {
                inner: &mut self.gzip,
                in_header: !is_first,
            };
            encode(&encoded, writer);
            // Without help the header of what follows is one line, the one that the filter takes away.
            encoded.set_help(String::new());
            is_first = false;
        }
    }

    /// Writes a family that has no labels, with its one sample.
    ///
    /// # Panics
    /// If the family has labels, which no input can cause.
    pub fn value(&mut self, family: &Family, value: f64) {
        self.family::<0, &str>(family, [([], value)]);
    }

    /// The finished body.
    #[must_use]
    pub fn finish(self) -> Body {
        Body {
            gzip: self.gzip.finish().expect("a vector takes every write"),
        }
    }
}

impl Default for Exposition {
    fn default() -> Self {
        Self::new()
    }
}

/// Metrics in the text format, as gzip: what is pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    gzip: Vec<u8>,
}

impl Body {
    /// The compressed bytes.
    #[must_use]
    pub fn gzip(&self) -> &[u8] {
        &self.gzip
    }

    /// The text, decompressed.
    ///
    /// # Panics
    /// Never: only [`Exposition::finish`] makes a body.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        GzDecoder::new(self.gzip.as_slice())
            .read_to_string(&mut text)
            .expect("gzip of text that we wrote");
        text
    }
}

/// So many samples exist as encoder objects at one time (each some hundred bytes).
const SAMPLES_IN_A_CHUNK: usize = 256;

fn metric<'a>(names: &[&str], values: impl Iterator<Item = &'a str>, value: f64) -> Metric {
    let labels: Vec<LabelPair> = names
        .iter()
        .zip(values)
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        })
        .collect();
    assert_eq!(labels.len(), names.len(), "a value for each of {names:?}");
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_gauge(gauge);
    metric.set_label(labels);
    metric
}

fn encode(family: &MetricFamily, mut writer: impl Write) {
    TextEncoder::new()
        .encode(std::slice::from_ref(family), &mut writer)
        .expect("a family with a name and a sample, into memory");
}

/// Passes on what is written, without the first line if that is a header that has been written before.
struct HeaderFilter<Inner> {
    inner: Inner,
    in_header: bool,
}

impl<Inner: Write> Write for HeaderFilter<Inner> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.in_header {
            return self.inner.write(bytes);
        }
        match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                self.in_header = false;
                Ok(end + 1)
            }
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: Family = Family {
        name: "used_bytes",
        help: "Bytes in use.",
        labels: &["claim", "node"],
    };
    const STARTED: Family = Family {
        name: "started_seconds",
        help: "Begin \\ of\nthe run.",
        labels: &[],
    };

    fn check(samples: &[([&str; 2], f64)], expected: &str) {
        let mut exposition = Exposition::new();
        exposition.family(&USED, samples.iter().copied());
        assert_eq!(exposition.finish().text(), expected, "{samples:?}");
    }

    #[test]
    fn writes_samples() {
        let header = "# HELP used_bytes Bytes in use.\n# TYPE used_bytes gauge\n";
        check(&[], "");
        check(
            &[(["data", "n1"], 5.0)],
            &format!("{header}used_bytes{{claim=\"data\",node=\"n1\"}} 5\n"),
        );
        check(
            &[(["a\"b\\c\nd", "ü"], 0.5), (["", "\r\t}"], 9_007_199_254_740_992.0)],
            &format!(
                "{header}used_bytes{{claim=\"a\\\"b\\\\c\\nd\",node=\"ü\"}} 0.5\n\
                 used_bytes{{claim=\"\",node=\"\r\t}}\"}} 9007199254740992\n"
            ),
        );
        // One series twice would cost the whole group.
        check(
            &[(["a", "b"], 1.0), (["ab", ""], 2.0), (["a", "b"], 3.0)],
            &format!("{header}used_bytes{{claim=\"a\",node=\"b\"}} 1\nused_bytes{{claim=\"ab\",node=\"\"}} 2\n"),
        );
        check(
            &[(["a", "b"], f64::NAN), (["c", "d"], f64::INFINITY)],
            &format!("{header}used_bytes{{claim=\"a\",node=\"b\"}} NaN\nused_bytes{{claim=\"c\",node=\"d\"}} inf\n"),
        );
    }

    #[test]
    fn writes_families_one_after_the_other() {
        let mut exposition = Exposition::new();
        exposition.value(&STARTED, 1_700_000_000.0);
        exposition.family(&USED, [([String::from("x"), String::from("y")], 1.0)]);
        assert_eq!(
            exposition.finish().text(),
            "# HELP started_seconds Begin \\\\ of\\nthe run.\n# TYPE started_seconds gauge\nstarted_seconds 1700000000\n\
             # HELP used_bytes Bytes in use.\n# TYPE used_bytes gauge\nused_bytes{claim=\"x\",node=\"y\"} 1\n"
        );
    }

    #[test]
    fn writes_the_header_of_a_long_family_once() {
        for samples in [SAMPLES_IN_A_CHUNK, SAMPLES_IN_A_CHUNK + 1, 3 * SAMPLES_IN_A_CHUNK] {
            let mut exposition = Exposition::new();
            exposition.family(
                &USED,
                (0..samples).map(|number| ([number.to_string(), String::from("n")], 1.0)),
            );
            let text = exposition.finish().text();
            assert_eq!(text.matches('#').count(), 2, "{samples}");
            let numbers: Vec<usize> = text
                .lines()
                .filter_map(|line| {
                    line.strip_prefix("used_bytes{claim=\"")?
                        .split('"')
                        .next()?
                        .parse()
                        .ok()
                })
                .collect();
            assert_eq!(numbers, (0..samples).collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic(expected = "label values for used_bytes")]
    fn refuses_another_number_of_labels() {
        Exposition::new().value(&USED, 1.0);
    }
}
