//! Whom the client trusts when it speaks TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};

/// A configuration that trusts the certificates in `ca_file` (PEM) and nothing else, or without that file the
/// system's, which are read only if `needs_roots`: a server without TLS needs none, an image may have none, and they
/// take a megabyte.
pub(super) fn client_config(ca_file: Option<&Path>, needs_roots: bool) -> Result<ClientConfig, TlsError> {
    let roots = match ca_file {
        Some(path) => roots_from_file(path)?,
        None if needs_roots => roots_of_the_system()?,
        None => RootCertStore::empty(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Why there is nobody to trust.
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
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
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
