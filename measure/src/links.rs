//! Which inodes were seen: a set of (device, inode) in little memory. Pure.
//!
//! Inode numbers come in patterns, and each has its own best form. Per chunk of 65,536 numbers the set keeps the
//! cheapest of four: a few numbers in place; a sorted list of 16-bit numbers (an aged ext4, every 64th number in use: 2
//! to 3 bytes an inode); 64-bit words that are not zero (XFS, runs of 64: a sixth of a byte); or a bitmap (a fresh ext4: an
//! eighth). A hash set takes 20 bytes for each; a roaring bitmap 5 on XFS, because it has no words.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A set of (device, inode).
#[derive(Default)]
pub(crate) struct Seen {
    devices: Vec<(u64, Chunks)>,
    chunk_bytes: usize,
}

type Chunks = HashMap<u64, Chunk, BuildHasherDefault<Mix>>;

impl Seen {
    /// Adds an inode; false if it was there already.
    pub(crate) fn insert(&mut self, device: u64, inode: u64) -> bool {
        // A volume has one device, or one for each btrfs subvolume or overlay layer: a list is quicker than a map. What
        // was found moves to the front.
        match self.devices.iter().position(|(known, _)| *known == device) {
            Some(0) => {}
            Some(place) => self.devices.swap(0, place),
            None => {
                self.devices.push((device, Chunks::default()));
                let last = self.devices.len() - 1;
                self.devices.swap(0, last);
            }
        }
        let chunk = self.devices[0].1.entry(inode >> 16).or_default();
        let before = chunk.heap_bytes();
        let new = chunk.insert((inode & 0xffff) as u16);
        self.chunk_bytes = self.chunk_bytes + chunk.heap_bytes() - before;
        new
    }

    /// The memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        // A map's slot is the pair and one byte of its own.
        const SLOT_BYTES: usize = size_of::<(u64, Chunk)>() + 1;
        let slots: usize = self.devices.iter().map(|(_, chunks)| chunks.capacity()).sum();
        self.chunk_bytes + slots * SLOT_BYTES
    }
}

const FEW: usize = 7;
const WORDS: usize = 1024;
const BITMAP_BYTES: usize = WORDS * 8;

enum Chunk {
    Few { count: u8, numbers: [u16; FEW] },
    List(Vec<u16>),
    Words(Box<Words>),
    Bitmap(Box<[u64; WORDS]>),
}

/// The words of the bitmap that are not zero: their places, sorted, and what stands there.
#[derive(Default)]
struct Words {
    places: Vec<u16>,
    words: Vec<u64>,
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk::Few {
            count: 0,
            numbers: [0; FEW],
        }
    }
}

impl Chunk {
    fn insert(&mut self, number: u16) -> bool {
        match self {
            Chunk::Few { count, numbers } => {
                let used = usize::from(*count);
                if numbers[..used].contains(&number) {
                    return false;
                }
                if used < FEW {
                    numbers[used] = number;
                    *count += 1;
                } else {
                    let mut list = Vec::with_capacity(2 * FEW);
                    list.extend_from_slice(numbers);
                    list.push(number);
                    list.sort_unstable();
                    *self = Chunk::List(list);
                }
                true
            }
            Chunk::List(list) => match place_of(list, number) {
                Ok(_) => false,
                Err(place) => {
                    if list.len() < list.capacity() {
                        list.insert(place, number);
                        return true;
                    }
                    match cheapest(list) {
                        Some(mut other) => {
                            other.insert(number);
                            *self = other;
                        }
                        None => {
                            list.reserve_exact(list.len() / 2);
                            list.insert(place, number);
                        }
                    }
                    true
                }
            },
            Chunk::Words(words) => {
                if let Some(new) = words.insert(number) {
                    return new;
                }
                *self = Chunk::Bitmap(words.bitmap());
                self.insert(number)
            }
            Chunk::Bitmap(bitmap) => set_bit(&mut bitmap[usize::from(number >> 6)], number),
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Chunk::Few { .. } => 0,
            Chunk::List(list) => list.capacity() * 2,
            Chunk::Words(words) => size_of::<Words>() + words.places.capacity() * 2 + words.words.capacity() * 8,
            Chunk::Bitmap(_) => BITMAP_BYTES,
        }
    }
}

/// Where a number stands in a sorted list, or would. Most are larger than all before: directories tend to hold inodes
/// in the order of their making.
fn place_of(list: &[u16], number: u16) -> Result<usize, usize> {
    match list.last() {
        Some(last) if *last < number => Err(list.len()),
        _ => list.binary_search(&number),
    }
}

/// The form that takes less than a list of these numbers, if there is one.
fn cheapest(list: &[u16]) -> Option<Chunk> {
    let list_bytes = list.len() * 2;
    let mut words = Words::default();
    let fits = list.iter().all(|number| words.insert(*number).is_some());
    if fits && words.places.len() * 10 < list_bytes {
        Some(Chunk::Words(Box::new(words)))
    } else if list_bytes >= BITMAP_BYTES {
        let mut bitmap = Box::new([0; WORDS]);
        for number in list {
            set_bit(&mut bitmap[usize::from(*number >> 6)], *number);
        }
        Some(Chunk::Bitmap(bitmap))
    } else {
        None
    }
}

impl Words {
    /// Adds a number and says whether it is new; nothing if it needs more room than a bitmap has.
    fn insert(&mut self, number: u16) -> Option<bool> {
        let place = match place_of(&self.places, number >> 6) {
            Ok(place) => place,
            Err(place) => {
                if self.places.len() == self.places.capacity() {
                    let more = (self.places.len() / 4).max(4);
                    if (self.places.len() + more) * 10 >= BITMAP_BYTES {
                        return None;
                    }
                    self.places.reserve_exact(more);
                    self.words.reserve_exact(more);
                }
                self.places.insert(place, number >> 6);
                self.words.insert(place, 0);
                place
            }
        };
        Some(set_bit(&mut self.words[place], number))
    }

    fn bitmap(&self) -> Box<[u64; WORDS]> {
        let mut bitmap = Box::new([0; WORDS]);
        for (place, word) in self.places.iter().zip(&self.words) {
            bitmap[usize::from(*place)] = *word;
        }
        bitmap
    }
}

fn set_bit(word: &mut u64, number: u16) -> bool {
    let bit = 1 << (number & 63);
    let new = *word & bit == 0;
    *word |= bit;
    new
}

/// Spreads chunk numbers over a map: one multiplication, because the numbers are the kernel's and no stranger's.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only 64-bit numbers are hashed")
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn it_is_a_set(
            pairs in prop::collection::vec((0u64..3, prop_oneof![0u64..3_000, 0u64..200_000, any::<u64>()]), 0..4_000),
            step in 1u64..100,
            run in 0u64..20_000,
        ) {
            let mut ours = Seen::default();
            let mut theirs = HashSet::new();
            for (device, inode) in pairs.into_iter().chain((0..run).map(|i| (1, i * step))) {
                prop_assert_eq!(ours.insert(device, inode), theirs.insert((device, inode)));
            }
        }
    }

    /// Five million inodes in each pattern that is known, as a walk finds them: by directory, out of order inside.
    #[test]
    fn five_million_inodes_take_little_memory() {
        const COUNT: u64 = 5_000_000;
        // Runs of 64 with other blocks between them, in four allocation groups.
        fn xfs(i: u64) -> u64 {
            (i / 64) * 64 * 9 + i % 64 + ((i / 1_250_000) << 32)
        }
        type Numbers = fn(u64) -> u64;
        let cases: [(&str, Numbers, usize); 4] = [
            ("fresh ext4", |i| i, 1 << 20),
            ("ext4, every 5th", |i| i * 5, 5 << 20),
            ("ext4, every 64th", |i| i * 64, 16 << 20),
            ("XFS", xfs, 4 << 20),
        ];
        for (name, inode, bytes_max) in cases {
            let mut seen = Seen::default();
            for i in 0..COUNT {
                // 7 has no factor in common with 1,000: each block of a thousand is visited whole, in a mixed order.
                assert!(seen.insert(1, inode(i / 1000 * 1000 + i * 7 % 1000)), "{name}: {i}");
            }
            assert!(!seen.insert(1, inode(COUNT / 2)), "{name}");
            assert!(seen.bytes() < bytes_max, "{name}: {} bytes", seen.bytes());
        }
    }
}
