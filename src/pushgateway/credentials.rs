//! Who we are to the server: nobody, a user with a password, or the bearer of a token.
//!
//! What stands in a file is read again for each try, because a Secret may be rotated between two. An error names the file,
//! and never what it holds; so does no text that is made of a server's reply: see [`Secrets`].

use std::fmt::{self, Debug, Formatter};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;
use reqwest::header::HeaderValue;

/// Longer than any token; a file that holds more is another one.
const CREDENTIAL_MAX_BYTES: usize = 16 << 10;

/// A shorter password is not looked for in what a server says: it is found in ordinary words.
const SECRET_MIN_BYTES: usize = 6;

/// Where we learn who we are.
#[derive(Clone, Debug)]
pub(super) enum Credentials {
    /// Nothing is said, or what the URL says, which each request carries from the beginning.
    Url,
    /// Basic authentication.
    Basic { user: PathBuf, password: PathBuf },
    /// A bearer token.
    Bearer { token: PathBuf },
}

/// Why nobody knows who we are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Only one of two files that belong together is given.
    #[error("{given} is set without {missing}: set both or none")]
    Half {
        /// The variable that is set.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// Several kinds are given, and a request can carry one.
    #[error(
        "the Pushgateway's credentials are given more than once: set one of user and password in \
         LP_EXPORTER_PUSHGATEWAY_URL, LP_EXPORTER_PUSHGATEWAY_USERNAME_FILE with LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE, and \
         LP_EXPORTER_PUSHGATEWAY_BEARER_TOKEN_FILE"
    )]
    Several,
    /// A file cannot be read, or holds nothing that could be sent.
    #[error("{what} cannot be read from {path:?}: {why}; see {variable}")]
    File {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, without what it holds.
        why: String,
        /// What names the file.
        variable: &'static str,
    },
}

/// What one try says of us.
pub(super) struct Authorization {
    /// The header, marked as secret; none where the request carries one already, or needs none.
    pub(super) header: Option<HeaderValue>,
    pub(super) secrets: Secrets,
}

impl Credentials {
    /// What the files say of us, each of which may be given or not; `in_url` if the URL says it.
    pub(super) fn new(
        user: Option<PathBuf>,
        password: Option<PathBuf>,
        token: Option<PathBuf>,
        in_url: bool,
    ) -> Result<Self, CredentialsError> {
        let half = |given, missing| Err(CredentialsError::Half { given, missing });
        match (user, password, token) {
            (None, None, None) => Ok(Self::Url),
            (Some(_), None, _) => half(USER_VARIABLE, PASSWORD_VARIABLE),
            (None, Some(_), _) => half(PASSWORD_VARIABLE, USER_VARIABLE),
            (Some(user), Some(password), None) if !in_url => Ok(Self::Basic { user, password }),
            (None, None, Some(token)) if !in_url => Ok(Self::Bearer { token }),
            _ => Err(CredentialsError::Several),
        }
    }

    /// Reads the files. They are small and lie in memory where they come from a Secret, so that it does not matter that
    /// the caller waits.
    pub(super) fn read(&self) -> Result<Authorization, CredentialsError> {
        match self {
            Self::Url => Ok(Authorization {
                header: None,
                secrets: Secrets::default(),
            }),
            Self::Basic { user, password } => {
                let name = Credential::USER.read(user)?;
                if name.contains(&b':') {
                    return Err(Credential::USER.refuse(user, "it holds a colon, which ends a user's name"));
                }
                let word = Credential::PASSWORD.read(password)?;
                let encoded = STANDARD.encode([&name[..], b":", &word[..]].concat());
                let header = HeaderValue::from_str(&format!("Basic {encoded}")).expect("base64 may stand in a header");
                let secrets = Secrets::of_header(Some(&header));
                Ok(Authorization::new(header, secrets))
            }
            Self::Bearer { token: path } => {
                let token = Credential::TOKEN.read(path)?;
                if !token.iter().all(u8::is_ascii_graphic) {
                    let why = "a token has no spaces, line breaks, control characters or letters beyond ASCII";
                    return Err(Credential::TOKEN.refuse(path, why));
                }
                let header = HeaderValue::from_bytes(&[b"Bearer ", &token[..]].concat());
                let header = header.expect("printable characters may stand in a header");
                Ok(Authorization::new(header, Secrets::new([token])))
            }
        }
    }
}

impl Authorization {
    fn new(mut header: HeaderValue, secrets: Secrets) -> Self {
        header.set_sensitive(true);
        Self {
            header: Some(header),
            secrets,
        }
    }
}

const USER_VARIABLE: &str = "LP_EXPORTER_PUSHGATEWAY_USERNAME_FILE";
const PASSWORD_VARIABLE: &str = "LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE";
const TOKEN_VARIABLE: &str = "LP_EXPORTER_PUSHGATEWAY_BEARER_TOKEN_FILE";

/// What a file may hold.
struct Credential {
    what: &'static str,
    variable: &'static str,
}

impl Credential {
    const USER: Self = Self {
        what: "the Pushgateway's user",
        variable: USER_VARIABLE,
    };
    const PASSWORD: Self = Self {
        what: "the Pushgateway's password",
        variable: PASSWORD_VARIABLE,
    };
    const TOKEN: Self = Self {
        what: "the Pushgateway's bearer token",
        variable: TOKEN_VARIABLE,
    };

    /// What the file holds, without the line break that editors and `echo` put at its end.
    fn read(&self, path: &Path) -> Result<Vec<u8>, CredentialsError> {
        let mut bytes = Vec::new();
        let limit = CREDENTIAL_MAX_BYTES as u64 + 1;
        File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(|error| self.refuse(path, &error.to_string()))?;
        if bytes.len() > CREDENTIAL_MAX_BYTES {
            return Err(self.refuse(path, "it holds more than 16 KiB"));
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            bytes.pop_if(|last| *last == b'\r');
        }
        if bytes.is_empty() {
            return Err(self.refuse(path, "it is empty"));
        }
        Ok(bytes)
    }

    fn refuse(&self, path: &Path, why: &str) -> CredentialsError {
        CredentialsError::File {
            what: self.what,
            path: path.to_owned(),
            why: why.to_owned(),
            variable: self.variable,
        }
    }
}

/// What must not be shown. A server may repeat what it was sent: such a text is not shown at all, because a part of it
/// could be a part of the secret.
#[derive(Clone, Default)]
pub(super) struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    pub(super) fn new(secrets: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let is_unmistakable = |secret: &Vec<u8>| secret.len() >= SECRET_MIN_BYTES;
        Self(secrets.into_iter().filter(is_unmistakable).collect())
    }

    /// The password in a header of basic authentication, as it is and as it is sent.
    pub(super) fn of_header(header: Option<&HeaderValue>) -> Self {
        let encoded = header.and_then(|header| header.as_bytes().strip_prefix(b"Basic "));
        let decoded = encoded.and_then(|encoded| STANDARD.decode(encoded).ok());
        let password = decoded.and_then(|decoded| {
            let colon = decoded.iter().position(|byte| *byte == b':')?;
            Some(decoded[colon + 1..].to_vec())
        });
        Self::new(password.into_iter().chain(encoded.map(<[u8]>::to_vec)))
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn are_in(&self, text: &[u8]) -> bool {
        self.0.iter().any(|secret| memmem::find(text, secret).is_some())
    }

    /// How far one that begins at a text's end reaches beyond it.
    pub(super) fn longest_bytes(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or(0)
    }
}

impl Debug for Secrets {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secrets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the contents into files, and expects a header or a part of the error.
    fn check(user: Option<&str>, password: Option<&str>, token: Option<&str>, expected: Result<&str, &str>) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, contents: Option<&str>| {
            let path = directory.path().join(name);
            contents.map(|contents| {
                std::fs::write(&path, contents).expect("a file");
                path
            })
        };
        let credentials = Credentials::new(
            write("user", user),
            write("password", password),
            write("token", token),
            false,
        );
        let found = credentials.and_then(|credentials| credentials.read());
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                let header = found.header.expect("a header");
                assert_eq!(header.to_str().expect("ASCII"), expected);
                assert!(header.is_sensitive());
            }
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{error}");
                assert!(!format!("{error}{error:?}").contains("marker"), "{error}");
            }
            (found, _) => panic!("{:?}, not {expected:?}", found.map(|found| found.header)),
        }
    }

    #[test]
    fn reads_what_files_hold() {
        check(Some("u"), Some("p"), None, Ok("Basic dTpw"));
        check(Some("u\n"), Some("p\r\n"), None, Ok("Basic dTpw"));
        // One line break is the file's, what stands before it the password's.
        check(Some("u"), Some(" p \n\n"), None, Ok("Basic dTogcCAK"));
        check(Some("ü"), Some("ö:"), None, Ok("Basic w7w6w7Y6"));
        check(None, None, Some("abc.def-_~+/=\n"), Ok("Bearer abc.def-_~+/="));

        check(Some("u"), None, None, Err("PASSWORD_FILE: set both"));
        check(None, Some("marker"), None, Err("USERNAME_FILE: set both"));
        check(Some("u"), Some("marker"), Some("marker"), Err("more than once"));
        check(Some("mar:ker"), Some("marker"), None, Err("colon"));
        check(Some(""), Some("marker"), None, Err("user\": it is empty"));
        check(Some("u"), Some("\n"), None, Err("password\": it is empty"));
        check(None, None, Some("marker marker"), Err("token\": a token has no spaces"));
        check(
            None,
            None,
            Some("marker\nmarker"),
            Err("token\": a token has no spaces"),
        );
        check(None, None, Some("märker"), Err("letters beyond ASCII"));
        let long = "marker".repeat(4_000);
        check(None, None, Some(&long), Err("more than 16 KiB"));
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let credentials = Credentials::Bearer {
            token: "/nowhere/token".into(),
        };
        let error = credentials.read().map(|_| ()).expect_err("there is no such file");
        assert_eq!(
            error.to_string(),
            "the Pushgateway's bearer token cannot be read from \"/nowhere/token\": No such file or directory (os error 2); \
             see LP_EXPORTER_PUSHGATEWAY_BEARER_TOKEN_FILE"
        );
    }

    #[test]
    fn what_the_url_says_is_not_said_twice() {
        let file = Some(PathBuf::from("token"));
        let error = Credentials::new(None, None, file, true).expect_err("one too many");
        assert_eq!(error, CredentialsError::Several);
        assert!(matches!(Credentials::new(None, None, None, true), Ok(Credentials::Url)));
    }

    #[test]
    fn finds_secrets() {
        let secrets = Secrets::new([b"short".to_vec(), b"longer".to_vec()]);
        assert!(secrets.are_in(b"a longer text") && !secrets.are_in(b"a short text"));
        assert_eq!(secrets.longest_bytes(), 6);
    }
}
