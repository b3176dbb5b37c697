//! A file system whose every answer the test decides: the kernel's FUSE protocol by hand, one request at a time.
//!
//! Its root holds two volumes of the same shape, [`ILL`] and [`WELL`]: a few files, a directory `sound` and a directory
//! [`ODD`] with files, the first of which is [`BAD`]. The trouble is with the ill one only.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

pub(crate) const ILL: &str = "ill";
pub(crate) const WELL: &str = "well";
pub(crate) const ODD: &str = "odd";
pub(crate) const BAD: &str = "bad";
/// What each inode takes: eight sectors.
pub(crate) const INODE_BYTES: u64 = 4096;
const FILES_EACH: usize = 40;
/// The volume's directory and the two in it, and files in all three.
pub(crate) const VOLUME_INODES: u64 = 3 + 3 * FILES_EACH as u64;

const ROOT: u64 = 1;
/// Numbers from here on are those of what an endless directory shows, by their place in it.
const ENDLESS: u64 = 1 << 32;
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// What is asked of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Lookup,
    Attributes,
    Open,
    Read,
}

/// What is wrong with the ill volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Asked this of that name, it answers with an error.
    Fails(Operation, &'static str, Errno),
    /// Asked this of that name, it never answers.
    Hangs(Operation, &'static str),
    /// Directories do not tell what kind their entries are.
    UnknownKinds,
    /// Directories are told one entry at a time.
    OneAtATime,
    /// Directories show neither themselves nor the one above.
    WithoutDots,
    /// There is always one more file in the odd directory.
    EndlessFiles,
    /// There is always one more directory in the odd directory.
    EndlessDirectories,
    /// The same, and it is not told that they are directories.
    EndlessUnknownKinds,
    /// The odd directory is in itself, by one more name.
    ItselfInside,
    /// The odd directory holds one with its own inode number, which holds one with its own inode number, …
    SameInodeInside,
}

struct Node {
    name: String,
    children: Vec<u64>,
    is_directory: bool,
    is_ill: bool,
}

pub(crate) struct Server {
    pub(crate) path: PathBuf,
    ended: Receiver<()>,
    _directory: tempfile::TempDir,
}

impl Server {
    /// Mounts it; the error says why this machine cannot.
    pub(crate) fn start(trouble: Trouble) -> Result<Server, String> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|error| format!("/dev/fuse: {error}"))?;
        let directory = tempfile::tempdir().unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other\0",
            device.as_raw_fd()
        );
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        mount("lp-broken", directory.path(), "fuse", flags, options).map_err(|error| format!("mount: {error}"))?;
        let (sender, ended) = channel();
        std::thread::spawn(move || {
            serve(device, &Served::new(trouble));
            let _ = sender.send(());
        });
        Ok(Server {
            path: directory.path().to_owned(),
            ended,
            _directory: directory,
        })
    }
}

impl Drop for Server {
    /// By force: whoever waits for an answer gets an error, so that nothing hangs beyond the test.
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::FORCE | UnmountFlags::DETACH);
        let _ = self.ended.recv_timeout(Duration::from_secs(10));
    }
}

fn serve(mut device: File, served: &Served) {
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if [Some(libc::EINTR), Some(libc::ENOENT)].contains(&error.raw_os_error()) => continue,
            // Unmounted.
            Err(_) => return,
        };
        let request = Request(&buffer[..length]);
        let Some(answer) = served.answer(&request) else {
            continue;
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error.raw_os_error(), Vec::new()),
        };
        let mut reply = Vec::with_capacity(16 + body.len());
        reply.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        reply.extend(error.to_ne_bytes());
        reply.extend(request.unique().to_ne_bytes());
        reply.extend(body);
        // Who asked may have been interrupted.
        let _ = device.write_all(&reply);
    }
}

/// A header of 40 bytes, and what belongs to the operation.
struct Request<'a>(&'a [u8]);

impl Request<'_> {
    fn number(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn small_number(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn unique(&self) -> u64 {
        self.number(8)
    }

    fn name(&self) -> &str {
        let end = self.0[40..].iter().position(|byte| *byte == 0).unwrap();
        std::str::from_utf8(&self.0[40..40 + end]).unwrap()
    }
}

/// Bytes, or an error; nothing is no answer at all.
type Answer = Option<Result<Vec<u8>, Errno>>;

struct Served {
    /// By inode number; the first two are nobody's and the root's.
    nodes: Vec<Node>,
    trouble: Trouble,
}

impl Served {
    fn new(trouble: Trouble) -> Served {
        let mut served = Served {
            nodes: Vec::new(),
            trouble,
        };
        for _ in 0..=ROOT {
            served.nodes.push(Node {
                name: String::new(),
                children: Vec::new(),
                is_directory: true,
                is_ill: false,
            });
        }
        for volume in [ILL, WELL] {
            let is_ill = volume == ILL;
            let top = served.plant(ROOT, volume, is_ill);
            for directory in ["sound", ODD] {
                served.plant(top, directory, is_ill);
            }
        }
        served
    }

    fn plant(&mut self, parent: u64, name: &str, is_ill: bool) -> u64 {
        let directory = self.add(parent, name, true, is_ill);
        for file in 0..FILES_EACH {
            let name = match (name, file) {
                (ODD, 0) => BAD.to_owned(),
                _ => format!("file {file}"),
            };
            self.add(directory, &name, false, is_ill);
        }
        directory
    }

    fn add(&mut self, parent: u64, name: &str, is_directory: bool, is_ill: bool) -> u64 {
        let number = self.nodes.len() as u64;
        self.nodes.push(Node {
            name: name.to_owned(),
            children: Vec::new(),
            is_directory,
            is_ill,
        });
        self.nodes[parent as usize].children.push(number);
        number
    }

    fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(usize::try_from(number).unwrap())
    }

    fn is_odd(&self, number: u64) -> bool {
        self.node(number).is_some_and(|node| node.is_ill && node.name == ODD)
    }

    fn answer(&self, request: &Request) -> Answer {
        let (operation, node) = (request.small_number(4), request.number(16));
        match operation {
            1 => self.lookup(node, request.name()),
            // Forgotten one by one and many at once, or interrupted: no answer is expected.
            2 | 42 | 36 => None,
            3 => self.unless_troubled(Operation::Attributes, node, || {
                let mut body = vec![0; 16];
                body.extend(self.attributes(node));
                body
            }),
            17 => Some(Ok(vec![0; 80])),
            26 => Some(Ok(greeting())),
            27 => self.unless_troubled(Operation::Open, node, || vec![0; 16]),
            28 => {
                let (from, bytes_max) = (request.number(48), request.small_number(56));
                self.unless_troubled(Operation::Read, node, || self.listing(node, from, bytes_max as usize))
            }
            29 | 38 => Some(Ok(Vec::new())),
            _ => Some(Err(Errno::NOSYS)),
        }
    }

    fn unless_troubled(&self, operation: Operation, number: u64, answer: impl FnOnce() -> Vec<u8>) -> Answer {
        let is_it = |what, name| {
            let node = self.node(number);
            what == operation && node.is_some_and(|node| node.is_ill && node.name == name)
        };
        match self.trouble {
            Trouble::Fails(what, name, error) if is_it(what, name) => Some(Err(error)),
            Trouble::Hangs(what, name) if is_it(what, name) => None,
            _ => Some(Ok(answer())),
        }
    }

    fn lookup(&self, parent: u64, name: &str) -> Answer {
        let extra = name.strip_prefix("extra ").and_then(|place| place.parse::<u64>().ok());
        let children = self.node(parent).map(|node| &node.children[..]).unwrap_or_default();
        let found = children
            .iter()
            .copied()
            .find(|child| self.nodes[*child as usize].name == name);
        let number = match (found, extra, self.trouble) {
            (Some(number), _, _) => number,
            (None, Some(_), Trouble::ItselfInside) => parent,
            (None, Some(place), _) => ENDLESS + place,
            (None, None, _) => return Some(Err(Errno::NOENT)),
        };
        self.unless_troubled(Operation::Lookup, number, || {
            // Nothing is valid for any time, so that the kernel asks again each time.
            let mut body = number.to_ne_bytes().to_vec();
            body.resize(40, 0);
            body.extend(self.attributes(number));
            body
        })
    }

    fn attributes(&self, number: u64) -> Vec<u8> {
        let is_directory = match self.node(number) {
            Some(node) => node.is_directory,
            None => self.trouble != Trouble::EndlessFiles,
        };
        let inode = match self.trouble {
            Trouble::SameInodeInside if number >= ENDLESS => self.odd(),
            _ => number,
        };
        let mut body = Vec::new();
        for field in [inode, 1000, INODE_BYTES / 512, 0, 0, 0] {
            body.extend(u64::to_ne_bytes(field));
        }
        let (mode, links) = if is_directory { (0o40755, 2) } else { (0o100_644, 1) };
        for field in [0, 0, 0, mode, links, 0, 0, 0, 4096, 0] {
            body.extend(u32::to_ne_bytes(field));
        }
        body
    }

    fn odd(&self) -> u64 {
        (0..).find(|number| self.is_odd(*number)).unwrap()
    }

    /// The entries of a directory from a place on, as many as there is room for.
    fn listing(&self, number: u64, from: u64, bytes_max: usize) -> Vec<u8> {
        let mut body = Vec::new();
        for place in from.. {
            let Some((child, kind, name)) = self.entry(number, place) else {
                break;
            };
            if name.is_empty() {
                continue;
            }
            let length = 24 + name.len().next_multiple_of(8);
            if body.len() + length > bytes_max {
                break;
            }
            let kind = match self.trouble {
                Trouble::UnknownKinds | Trouble::EndlessUnknownKinds => libc::DT_UNKNOWN,
                _ => kind,
            };
            let end = body.len() + length;
            body.extend(child.to_ne_bytes());
            body.extend((place + 1).to_ne_bytes());
            body.extend(u32::try_from(name.len()).unwrap().to_ne_bytes());
            body.extend(u32::from(kind).to_ne_bytes());
            body.extend(name.as_bytes());
            body.resize(end, 0);
            if self.trouble == Trouble::OneAtATime {
                break;
            }
        }
        body
    }

    /// Inode number, kind and name of what stands at a place in a directory; an empty name is passed over.
    fn entry(&self, number: u64, place: u64) -> Option<(u64, u8, String)> {
        let dots = [".", ".."];
        let children = self.node(number).map(|node| &node.children[..]).unwrap_or_default();
        let index = usize::try_from(place).unwrap();
        if let Some(name) = dots.get(index) {
            let is_shown = self.trouble != Trouble::WithoutDots;
            return Some((
                number,
                libc::DT_DIR,
                if is_shown { (*name).to_owned() } else { String::new() },
            ));
        }
        if let Some(child) = children.get(index - dots.len()) {
            let node = &self.nodes[*child as usize];
            let kind = if node.is_directory { libc::DT_DIR } else { libc::DT_REG };
            return Some((*child, kind, node.name.clone()));
        }
        let extra = |kind| Some((ENDLESS + place, kind, format!("extra {place}")));
        let is_first = index == dots.len() + children.len();
        match self.trouble {
            Trouble::EndlessFiles if self.is_odd(number) => extra(libc::DT_REG),
            Trouble::EndlessDirectories | Trouble::EndlessUnknownKinds if self.is_odd(number) => extra(libc::DT_DIR),
            Trouble::ItselfInside if self.is_odd(number) && is_first => extra(libc::DT_DIR),
            Trouble::SameInodeInside if (self.is_odd(number) || number >= ENDLESS) && is_first => extra(libc::DT_DIR),
            _ => None,
        }
    }
}

/// Version 7.31 of the protocol with one of its options.
fn greeting() -> Vec<u8> {
    /// Else the kernel asks for one name of a directory after the other, and one that hangs holds up all.
    const PARALLEL_DIRECTORY_OPERATIONS: u32 = 1 << 18;
    let mut body = Vec::new();
    for field in [7, 31, 0, PARALLEL_DIRECTORY_OPERATIONS] {
        body.extend(field.to_ne_bytes());
    }
    for field in [16u16, 12] {
        body.extend(field.to_ne_bytes());
    }
    for field in [4096u32, 1] {
        body.extend(field.to_ne_bytes());
    }
    body.resize(64, 0);
    body
}
