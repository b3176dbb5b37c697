//! Takes the objects out of the JSON of a List while it is read.
//!
//! Where an object ends is found by its brackets and strings alone, most of them in long steps; a parser that looks at a
//! file's bytes one by one takes four times as long, and a dump of a large cluster has hundreds of megabytes. What is left
//! is the List with an empty object, as long as the one that was there, in the place of each. A parser that reads it checks
//! everything around the objects, and its lines and columns are those of the file.

use std::io::{self, BufRead, Read};
use std::mem;

use memchr::{memchr_iter, memchr2, memrchr};

/// No object of a cluster is larger than some megabytes, because etcd takes no larger one.
pub(super) const OBJECT_BYTES_MAX: usize = 32 << 20;
/// The field of a List that has the objects.
const ITEMS: &[u8] = b"items";

/// A part of a file that stands where an object does.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Object {
    /// Its text. That it is well-formed is not known.
    pub(super) text: Vec<u8>,
    /// Where it begins, as serde_json counts: both from 1.
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What the brackets and strings before a place say of it.
#[derive(Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    fn step(&mut self, byte: u8) {
        if self.is_escaped {
            self.is_escaped = false;
        } else if self.in_string {
            match byte {
                b'"' => self.in_string = false,
                b'\\' => self.is_escaped = true,
                _ => {}
            }
        } else {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    /// Goes on to the place after the bracket that ends what is deeper than `depth`; nothing if it comes later.
    fn skip_to(&mut self, depth: usize, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.in_string && !self.is_escaped {
                at += memchr2(b'"', b'\\', &bytes[at..])?;
            }
            let byte = bytes[at];
            self.step(byte);
            at += 1;
            if matches!(byte, b'}' | b']') && self.depth == depth {
                return Some(at);
            }
        }
        None
    }
}

/// Reads a List without the objects in it, which it hands to `take`.
pub(super) struct Cut<R, F> {
    reader: R,
    take: F,
    nesting: Nesting,
    /// The last string of the List itself, as far as it matters.
    string: Vec<u8>,
    /// Whether the array that is read is that of the objects.
    is_items: bool,
    /// Where the next byte stands.
    line: usize,
    column: usize,
    object: Option<Object>,
    /// What stands for an object that was taken: so many ends of lines, so many spaces, and the bracket, if it came.
    lines: usize,
    spaces: usize,
    bracket: bool,
}

/// The objects of a List are at this depth, inside the List and its array.
const OBJECT_DEPTH: usize = 2;

impl<R: BufRead, F: FnMut(Object) -> io::Result<()>> Cut<R, F> {
    /// An error of `take` is one of reading. An object that is cut off, by the end or for its size, is handed over too.
    pub(super) fn new(reader: R, take: F) -> Cut<R, F> {
        Cut {
            reader,
            take,
            nesting: Nesting::default(),
            string: Vec::new(),
            is_items: false,
            line: 1,
            column: 1,
            object: None,
            lines: 0,
            spaces: 0,
            bracket: false,
        }
    }

    /// Writes what is due for an object that was taken.
    fn stand_in(&mut self, out: &mut [u8]) -> usize {
        let mut written = 0;
        for (byte, count) in [(b'\n', &mut self.lines), (b' ', &mut self.spaces)] {
            let some = (*count).min(out.len() - written);
            out[written..written + some].fill(byte);
            *count -= some;
            written += some;
        }
        if self.bracket && written < out.len() {
            self.bracket = false;
            out[written] = b'}';
            written += 1;
        }
        written
    }

    /// Reads what is not of an object, up to the first byte of one.
    fn around(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let input = self.reader.fill_buf()?;
        let mut copied = 0;
        for (&byte, out) in input.iter().zip(out) {
            let Nesting { depth, in_string, .. } = self.nesting;
            let (line, column) = (self.line, self.column);
            self.nesting.step(byte);
            *out = byte;
            copied += 1;
            (self.line, self.column) = if byte == b'\n' {
                (line + 1, 1)
            } else {
                (line, column + 1)
            };
            match byte {
                b'"' if !in_string => self.string.clear(),
                // One more than the field's name is enough to tell another one from it.
                _ if self.nesting.in_string && depth == 1 && self.string.len() <= ITEMS.len() => self.string.push(byte),
                b'[' if !in_string && depth == 1 => self.is_items = self.string == ITEMS,
                b']' | b'}' if !in_string && depth == OBJECT_DEPTH => self.is_items = false,
                b'{' if !in_string && depth == OBJECT_DEPTH && self.is_items => {
                    self.object = Some(Object {
                        text: vec![byte],
                        line,
                        column,
                    });
                    break;
                }
                _ => {}
            }
        }
        self.reader.consume(copied);
        Ok(copied)
    }

    /// Reads on in an object, and hands it over at its end.
    fn inside(&mut self, mut object: Object) -> io::Result<()> {
        let input = self.reader.fill_buf()?;
        let end = self.nesting.skip_to(OBJECT_DEPTH, input);
        let taken = end.unwrap_or(input.len());
        object.text.extend_from_slice(&input[..taken]);
        let is_last = taken == 0;
        self.reader.consume(taken);
        if end.is_none() && !is_last && object.text.len() <= OBJECT_BYTES_MAX {
            self.object = Some(object);
            return Ok(());
        }
        // The first bracket was passed on, and the last one will be.
        let ends = &object.text[1..object.text.len() - usize::from(end.is_some())];
        self.lines = memchr_iter(b'\n', ends).count();
        self.spaces = memrchr(b'\n', ends).map_or(ends.len(), |last| ends.len() - last - 1);
        self.bracket = end.is_some();
        self.line += self.lines;
        self.column = self.spaces + if self.lines > 0 { 1 } else { self.column } + usize::from(end.is_some());
        (self.take)(object)
    }
}

impl<R: BufRead, F: FnMut(Object) -> io::Result<()>> Read for Cut<R, F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let written = self.stand_in(out);
            if written > 0 {
                return Ok(written);
            }
            match mem::take(&mut self.object) {
                Some(object) => self.inside(object)?,
                None => return self.around(out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// What is left, and the objects with their places, read in steps of so many bytes.
    fn cut(text: &str, step: usize) -> (String, Vec<(String, usize, usize)>) {
        let mut objects = Vec::new();
        let mut left = String::new();
        let reader = io::BufReader::with_capacity(step, text.as_bytes());
        Cut::new(reader, |object| {
            let text = String::from_utf8(object.text).expect("cut between characters");
            objects.push((text, object.line, object.column));
            Ok(())
        })
        .read_to_string(&mut left)
        .expect("reading from memory");
        (left, objects)
    }

    #[test]
    fn objects_are_taken_out_of_the_list_alone() {
        for (text, left, objects) in [
            (r#"{"items":[]}"#, r#"{"items":[]}"#, vec![]),
            (
                r#"{"items":[{"a":[{}]},{}]}"#,
                r#"{"items":[{        },{}]}"#,
                vec![(r#"{"a":[{}]}"#, 1, 11), ("{}", 1, 22)],
            ),
            (
                "{\n\"items\" :\n [ {\"a\":\n\n 1} ,\n7, {}]}",
                "{\n\"items\" :\n [ {\n\n  } ,\n7, {}]}",
                vec![("{\"a\":\n\n 1}", 3, 4), ("{}", 6, 4)],
            ),
            (
                r#"{"items":[{"}":"]\"}"}],"x":[{"a":1}],"items":{"items":[{"b":1}]}}"#,
                r#"{"items":[{          }],"x":[{"a":1}],"items":{"items":[{"b":1}]}}"#,
                vec![(r#"{"}":"]\"}"}"#, 1, 11)],
            ),
            (
                r#"{"items":[{}],"metadata":{"a":{"b":1}}}"#,
                r#"{"items":[{}],"metadata":{"a":{"b":1}}}"#,
                vec![("{}", 1, 11)],
            ),
            (r#"[{"items":[{"a":1}]}]"#, r#"[{"items":[{"a":1}]}]"#, vec![]),
            (
                r#"{"itemsitems":[{"a":1}],"item":[{"a":1}]}"#,
                r#"{"itemsitems":[{"a":1}],"item":[{"a":1}]}"#,
                vec![],
            ),
            // What is cut off is handed over as far as it goes.
            (
                "{\"items\":[{\"a\":\n1",
                "{\"items\":[{\n ",
                vec![("{\"a\":\n1", 1, 11)],
            ),
            ("]]}}", "]]}}", vec![]),
            ("", "", vec![]),
        ] {
            for step in [1, 2, 3, 7, 1000] {
                let objects: Vec<_> = objects.iter().map(|&(text, l, c)| (String::from(text), l, c)).collect();
                assert_eq!(cut(text, step), (left.to_owned(), objects), "{text} in steps of {step}");
            }
        }
    }

    #[test]
    fn an_endless_object_is_not_held() {
        let text = io::repeat(b'{');
        let start = &b"{\"items\":["[..];
        let mut largest = 0;
        let reader = io::BufReader::with_capacity(1 << 20, start.chain(text));
        let result = Cut::new(reader, |object| {
            largest = object.text.len();
            Err(io::Error::other("enough"))
        })
        .read_to_end(&mut Vec::new());
        assert!(result.is_err());
        assert!((OBJECT_BYTES_MAX..OBJECT_BYTES_MAX + (2 << 20)).contains(&largest));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            r#"[]\[\\"{}: ,]{0,6}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let name = prop_oneof!["items", r#"["\\{}\[]{0,3}"#];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((name, inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_object_is_found_and_nothing_moves(
            items in prop::collection::vec(json(), 0..5),
            other in json(),
            pretty: bool,
            step in 1_usize..40,
        ) {
            let list = serde_json::json!({"a": other, "items": items, "z": other});
            let text = if pretty { format!("{list:#}") } else { list.to_string() };
            let (left, objects) = cut(&text, step);
            let found: Vec<Value> = objects.iter().map(|(text, ..)| serde_json::from_str(text).expect("as it was")).collect();
            let expected: Vec<Value> = items.iter().filter(|item| item.is_object()).cloned().collect();
            prop_assert_eq!(found, expected);
            // With the objects in their places it is the text again.
            let mut again: Vec<Vec<u8>> = left.split('\n').map(|line| line.as_bytes().to_vec()).collect();
            for (text, line, column) in objects {
                let lines: Vec<&str> = text.split('\n').collect();
                for (index, part) in lines.iter().enumerate() {
                    let whole = &mut again[line - 1 + index];
                    let start = if index == 0 { column - 1 } else { 0 };
                    if index + 1 < lines.len() {
                        whole.truncate(start);
                        whole.extend_from_slice(part.as_bytes());
                    } else {
                        whole[start..start + part.len()].copy_from_slice(part.as_bytes());
                    }
                }
            }
            prop_assert_eq!(String::from_utf8(again.join(&b'\n')).expect("as it was"), text);
        }
    }
}
