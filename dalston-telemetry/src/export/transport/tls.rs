//! Certificates and keys: from files to the configuration of the transports.
//!
//! TLS is rustls with ring, which needs no other C compiler than the one that Rust links with.
//! Without a certificate file, the certificates of the system are trusted, so that one which an
//! operator adds to the system counts.

use std::fs;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

use crate::error::InitError;
use crate::export::exporter_config::{Endpoint, TlsFile, TlsFiles};

/// The contents of the files.
pub(super) struct TlsMaterial {
    /// PEM; `None` for the certificates of the system.
    pub(super) certificate: Option<Vec<u8>>,
    /// PEM of the certificate chain and of the key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    files: TlsFiles,
}

impl TlsMaterial {
    pub(super) fn read(files: &TlsFiles) -> Result<Self, InitError> {
        let read = |file: &TlsFile| {
            fs::read(&file.path).map_err(|error| wrong(file, format!("can't be read: {error}")))
        };
        Ok(Self {
            certificate: files.certificate.as_ref().map(read).transpose()?,
            identity: match &files.identity {
                Some(identity) => Some((read(&identity.certificate)?, read(&identity.key)?)),
                None => None,
            },
            files: files.clone(),
        })
    }

    pub(super) fn client_config(&self, endpoint: &Endpoint) -> Result<ClientConfig, InitError> {
        let roots = match (&self.certificate, &self.files.certificate) {
            (Some(pem), Some(file)) => roots_of_file(file, pem)?,
            _ => roots_of_system(endpoint)?,
        };
        let builder = builder().with_root_certificates(roots);
        let (Some((chain, key)), Some(files)) = (&self.identity, &self.files.identity) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(&files.certificate, chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            let is_encrypted = String::from_utf8_lossy(key).contains("ENCRYPTED");
            let reason = match is_encrypted {
                true => "holds an encrypted private key: decrypt it, for example with `openssl pkey`",
                false => "holds no private key in PEM form",
            };
            wrong(&files.key, reason.into())
        })?;
        builder.with_client_auth_cert(chain, key).map_err(|error| {
            wrong(
                &files.key,
                format!("does not belong to the client certificate: {error}"),
            )
        })
    }

    /// For a client that only sends plain text.
    pub(super) fn nothing_trusted() -> ClientConfig {
        builder()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    }
}

fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has a cipher suite for every protocol version that rustls has")
}

fn roots_of_file(file: &TlsFile, pem: &[u8]) -> Result<RootCertStore, InitError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, pem)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(file, format!("can't be trusted: {error}")))?;
    }
    Ok(roots)
}

fn roots_of_system(endpoint: &Endpoint) -> Result<RootCertStore, InitError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(InitError::Exporter {
            endpoint: endpoint.to_string(),
            reason: "the system has no trusted certificates: install ca-certificates, or name a file in \
                     OTEL_EXPORTER_OTLP_CERTIFICATE"
                .into(),
            source: None,
        });
    }
    Ok(roots)
}

fn certificates(file: &TlsFile, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InitError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(file, format!("is not valid PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(wrong(file, "holds no certificate in PEM form".into()));
    }
    Ok(certificates)
}

fn wrong(file: &TlsFile, reason: String) -> InitError {
    InitError::Certificate {
        setting: file.setting,
        path: file.path.clone(),
        reason,
    }
}
