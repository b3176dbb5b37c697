//! Whom the client trusts when it speaks TLS, and how it shows who it is.

use std::fmt::{self, Debug, Formatter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// What TLS is told.
pub(super) struct TlsSettings {
    /// PEM certificates that vouch for the server, and nobody else does; without it the system's.
    pub(super) ca_file: Option<PathBuf>,
    /// Our own certificate, with those between it and its CA (PEM).
    pub(super) client_certificate_file: Option<PathBuf>,
    /// The key of that certificate (PEM).
    pub(super) client_key_file: Option<PathBuf>,
    /// The name that the server's certificate has to be for, in the place of the URL's host.
    pub(super) server_name: Option<String>,
    /// Whether the URL is https. A server without TLS needs no roots of the system: an image may have none, and they take
    /// a megabyte.
    pub(super) is_https: bool,
}

/// A configuration that trusts whom `settings` say.
pub(super) fn client_config(settings: TlsSettings) -> Result<ClientConfig, TlsError> {
    let TlsSettings {
        ca_file,
        client_certificate_file,
        client_key_file,
        server_name,
        is_https,
    } = settings;
    let roots = match ca_file {
        Some(path) => roots_from_file(&path)?,
        None if is_https => roots_of_the_system()?,
        None => RootCertStore::empty(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match server_name {
        None => builder.with_root_certificates(roots),
        Some(_) if !is_https => return Err(TlsError::NoTls(SERVER_NAME_VARIABLE)),
        Some(name) => {
            let verifier = NamedServer::new(&name, roots, Arc::clone(&provider))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    match (client_certificate_file, client_key_file) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(_), Some(_)) if !is_https => Err(TlsError::NoTls(CLIENT_CERTIFICATE_VARIABLE)),
        (Some(certificate_file), Some(key_file)) => {
            let files = ClientFiles {
                certificate_file,
                key_file,
            };
            let client = Client {
                last: Mutex::new(Arc::new(files.read(&provider)?)),
                files,
                provider,
            };
            Ok(builder.with_client_cert_resolver(Arc::new(client)))
        }
        (Some(_), None) => Err(TlsError::HalfClient {
            given: CLIENT_CERTIFICATE_VARIABLE,
            missing: CLIENT_KEY_VARIABLE,
        }),
        (None, Some(_)) => Err(TlsError::HalfClient {
            given: CLIENT_KEY_VARIABLE,
            missing: CLIENT_CERTIFICATE_VARIABLE,
        }),
    }
}

const SERVER_NAME_VARIABLE: &str = "LP_EXPORTER_PUSHGATEWAY_SERVER_NAME";
const CLIENT_CERTIFICATE_VARIABLE: &str = "LP_EXPORTER_PUSHGATEWAY_CLIENT_CERTIFICATE_FILE";
const CLIENT_KEY_VARIABLE: &str = "LP_EXPORTER_PUSHGATEWAY_CLIENT_KEY_FILE";

/// Why there is nobody to trust, or nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of the CA cannot be read, or is no PEM.
    #[error(
        "the CA certificates of the Pushgateway cannot be read from {path:?}: {why}; set LP_EXPORTER_PUSHGATEWAY_CA_FILE \
         to a file of PEM certificates"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Neither a file is given nor has the system any.
    #[error(
        "there are no CA certificates on this system to check the Pushgateway by: give its CA by \
         LP_EXPORTER_PUSHGATEWAY_CA_FILE"
    )]
    NoSystemRoots,
    /// Our certificate or its key cannot be used. What the files hold is not shown.
    #[error("the client certificate for the Pushgateway cannot be used: {path:?} {why}; see {variable}")]
    Client {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What names the file.
        variable: &'static str,
    },
    /// Certificate or key is given without the other.
    #[error("{given} is set without {missing}: set both or none")]
    HalfClient {
        /// The variable that is set.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// A setting that only TLS could follow.
    #[error("{0} is set, and LP_EXPORTER_PUSHGATEWAY_URL is no https URL, so that nobody would look at it")]
    NoTls(&'static str),
    /// No certificate can be for this name.
    #[error("LP_EXPORTER_PUSHGATEWAY_SERVER_NAME is neither a host's name nor an address: {0:?}")]
    ServerName(String),
    /// The verifier refuses the roots.
    #[error("the check of the Pushgateway's certificate cannot be set up")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

fn roots_from_file(path: &Path) -> Result<RootCertStore, TlsError> {
    let refuse = |why: String| TlsError::File {
        path: path.to_owned(),
        why,
    };
    // Read as a whole first: it names the cause (not found, no permission) better than the PEM reader does.
    let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
        roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(refuse("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

fn roots_of_the_system() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // Systems carry a few certificates that no library takes; only to have none at all is an error.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TlsError::NoSystemRoots);
    }
    Ok(roots)
}

/// Checks the server's certificate as always, for another name than the one in the URL.
#[derive(Debug)]
struct NamedServer {
    name: ServerName<'static>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl NamedServer {
    fn new(name: &str, roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let refuse = |_| TlsError::ServerName(name.to_owned());
        Ok(Self {
            name: ServerName::try_from(name.to_owned()).map_err(refuse)?,
            verifier: WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?,
        })
    }
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _in_url: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier
            .verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Where our certificate and its key lie.
#[derive(Debug)]
struct ClientFiles {
    certificate_file: PathBuf,
    key_file: PathBuf,
}

impl ClientFiles {
    fn read(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let Self {
            certificate_file,
            key_file,
        } = self;
        let read = |path: &Path, variable| {
            std::fs::read(path).map_err(|error| client_error(path, variable, format!("cannot be read: {error}")))
        };
        let certificates = read(certificate_file, CLIENT_CERTIFICATE_VARIABLE)?;
        let of_certificate = |why: &str| client_error(certificate_file, CLIENT_CERTIFICATE_VARIABLE, why.to_owned());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificates)
            .collect::<Result<_, _>>()
            .map_err(|_| of_certificate("holds a certificate that is no PEM"))?;
        if chain.is_empty() {
            return Err(of_certificate("holds no certificate in PEM"));
        }
        // The library's errors may show parts of what they could not read.
        let of_key = |why: &str| client_error(key_file, CLIENT_KEY_VARIABLE, why.to_owned());
        let key = read(key_file, CLIENT_KEY_VARIABLE)?;
        let key =
            PrivateKeyDer::from_pem_slice(&key).map_err(|_| of_key("holds no key in PEM that is not encrypted"))?;
        CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => of_key("is not the key of the certificate"),
            _ => of_key("holds a key of a kind that is not known, or the certificate cannot be read"),
        })
    }
}

fn client_error(path: &Path, variable: &'static str, why: String) -> TlsError {
    TlsError::Client {
        path: path.to_owned(),
        why,
        variable,
    }
}

/// Reads certificate and key again for each connection, because they may be rotated.
struct Client {
    files: ClientFiles,
    provider: Arc<CryptoProvider>,
    /// What is shown while one file has been replaced and the other has not.
    last: Mutex<Arc<CertifiedKey>>,
}

impl ResolvesClientCert for Client {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match self.files.read(&self.provider) {
            Ok(key) => *last = Arc::new(key),
            Err(error) => tracing::warn!("{error}; the certificate from before is shown"),
        }
        Some(Arc::clone(&last))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Debug for Client {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}
