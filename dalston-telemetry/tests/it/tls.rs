//! Encrypted connections: trusted certificates and client certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::{Env, InitError, Telemetry};
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use testbed::collector::{Collector, Protocol, env};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::service::Service;

const PROTOCOLS: [Protocol; 2] = [Protocol::Grpc, Protocol::Http];

/// An authority with a certificate for a server and one for a client, as files.
struct Authority {
    directory: tempfile::TempDir,
    certificate: CertificateDer<'static>,
    server: (CertificateDer<'static>, PrivateKeyDer<'static>),
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();

        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let server = params.signed_by(&key, &issuer).unwrap();
        let server = (
            server.der().clone(),
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );

        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["engine".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client = params.signed_by(&key, &issuer).unwrap();

        let directory = tempfile::tempdir().unwrap();
        for (name, pem) in [
            ("ca.pem", issuer.pem()),
            ("client.pem", client.pem()),
            ("client.key", key.serialize_pem()),
        ] {
            std::fs::write(directory.path().join(name), pem).unwrap();
        }
        Self {
            directory,
            certificate: issuer.der().clone(),
            server,
        }
    }

    fn file(&self, name: &str) -> String {
        path(&self.directory.path().join(name))
    }

    fn acceptor(&self, protocol: Protocol, demand_client: bool) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if demand_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let (certificate, key) = (self.server.0.clone(), self.server.1.clone_key());
        let mut config = builder.with_single_cert(vec![certificate], key).unwrap();
        let speaks: &[u8] = if protocol == Protocol::Grpc {
            b"h2"
        } else {
            b"http/1.1"
        };
        config.alpn_protocols = vec![speaks.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn tls_env(protocol: Protocol, collector: &Collector, files: &[(&str, String)]) -> Vec<(String, String)> {
    let mut env = env(
        protocol,
        &format!("https://localhost:{}", collector.address.port()),
    );
    env.extend(
        files
            .iter()
            .map(|(name, file)| ((*name).to_owned(), file.clone())),
    );
    env
}

#[test]
fn collector_with_certificate_of_given_authority_is_trusted() {
    for protocol in PROTOCOLS {
        let authority = Authority::new();
        let collector = Collector::with_tls(protocol, authority.acceptor(protocol, false));
        let files = [("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.file("ca.pem"))];
        let service = Service::start(tls_env(protocol, &collector, &files));
        service.spans(1);
        assert_eq!(
            service.telemetry.flush(Duration::from_secs(30)),
            Ok(()),
            "{protocol:?}"
        );
        assert_eq!(collector.next().span_names(), ["work"]);
    }
}

#[test]
fn endpoint_without_scheme_is_encrypted_if_not_insecure() {
    for (protocol, variable) in [
        (Protocol::Grpc, "OTEL_INSECURE"),
        (Protocol::Http, "OTEL_EXPORTER_OTLP_INSECURE"),
        (Protocol::Grpc, "OTEL_EXPORTER_OTLP_TRACES_INSECURE"),
    ] {
        let authority = Authority::new();
        let collector = Collector::with_tls(protocol, authority.acceptor(protocol, false));
        let mut env = env(protocol, &format!("localhost:{}", collector.address.port()));
        env.push((
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE".into(),
            authority.file("ca.pem"),
        ));
        env.push((variable.into(), "false".into()));
        let service = Service::start(env);
        service.spans(1);
        assert_eq!(
            service.telemetry.flush(Duration::from_secs(30)),
            Ok(()),
            "{variable}"
        );
        assert_eq!(collector.next().span_names(), ["work"]);
    }
}

#[test]
fn a_collector_of_another_authority_gets_nothing() {
    for protocol in PROTOCOLS {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let collector = Collector::with_tls(protocol, theirs.acceptor(protocol, false));
        let files = [("OTEL_EXPORTER_OTLP_CERTIFICATE", ours.file("ca.pem"))];
        let env = tls_env(protocol, &collector, &files);
        let service = Service::with(env, |builder| builder.shutdown_timeout(Duration::from_secs(30)));
        service.spans(1);
        assert!(service.telemetry.shutdown_blocking().is_err(), "{protocol:?}");
        assert!(collector.rest().is_empty());
    }
}

#[test]
fn failed_handshake_says_what_to_change() {
    for protocol in PROTOCOLS {
        let mut self_signed = Authority::new();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(self_signed.directory.path().join("ca.pem"), certificate.pem()).unwrap();
        self_signed.server = (
            certificate.der().clone(),
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
        let (ours, theirs) = (Authority::new(), Authority::new());
        for (trusted, server, advice) in [
            (&self_signed, &self_signed, "give it one with CA:FALSE"),
            (&ours, &theirs, "in OTEL_EXPORTER_OTLP_CERTIFICATE"),
        ] {
            let collector = Collector::with_tls(protocol, server.acceptor(protocol, false));
            let files = [("OTEL_EXPORTER_OTLP_CERTIFICATE", trusted.file("ca.pem"))];
            let service = Service::with(tls_env(protocol, &collector, &files), |builder| {
                builder.shutdown_timeout(Duration::from_secs(30))
            });
            service.spans(1);
            let error = service.telemetry.shutdown_blocking().unwrap_err().to_string();
            assert!(error.contains(advice), "{protocol:?} {error}");
        }
    }
}

#[test]
fn encrypted_key_is_called_encrypted() {
    let authority = Authority::new();
    let key = path(&authority.directory.path().join("encrypted.pem"));
    let pem = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(&key, pem).unwrap();
    for protocol in PROTOCOLS {
        let mut env = env(protocol, "https://localhost:4317");
        for (name, file) in [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.file("ca.pem")),
            (
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                authority.file("client.pem"),
            ),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", key.clone()),
        ] {
            env.push((name.to_owned(), file));
        }
        let builder = Telemetry::builder("engine-test").env(Env::from_pairs(env));
        let error = builder
            .into_layer::<tracing_subscriber::Registry>()
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("holds an encrypted private key"), "{error}");
    }
}

#[test]
fn client_certificate_is_sent_if_collector_asks() {
    for protocol in PROTOCOLS {
        let authority = Authority::new();
        let collector = Collector::with_tls(protocol, authority.acceptor(protocol, true));
        let files = [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.file("ca.pem")),
            (
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                authority.file("client.pem"),
            ),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", authority.file("client.key")),
        ];
        let service = Service::start(tls_env(protocol, &collector, &files));
        service.spans(1);
        assert_eq!(
            service.telemetry.flush(Duration::from_secs(30)),
            Ok(()),
            "{protocol:?}"
        );
        assert_eq!(collector.next().span_names(), ["work"]);
    }
}

#[test]
fn a_file_that_can_not_be_used_is_named_at_start() {
    let authority = Authority::new();
    let text = path(&authority.directory.path().join("text.pem"));
    std::fs::write(&text, "not a certificate").unwrap();
    let missing = authority.file("missing.pem");
    let cases = [
        (
            vec![("OTEL_EXPORTER_OTLP_CERTIFICATE", missing.clone())],
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            &missing,
        ),
        (
            vec![("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", text.clone())],
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            &text,
        ),
        (
            vec![
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.file("ca.pem")),
                (
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                    authority.file("client.pem"),
                ),
                ("OTEL_EXPORTER_OTLP_CLIENT_KEY", text.clone()),
            ],
            "OTEL_EXPORTER_OTLP_CLIENT_KEY",
            &text,
        ),
    ];
    for (files, variable, file) in cases {
        for protocol in PROTOCOLS {
            let mut env = env(protocol, "https://localhost:4317");
            env.extend(
                files
                    .iter()
                    .map(|(name, file)| ((*name).to_owned(), file.clone())),
            );
            let builder = Telemetry::builder("engine-test").env(Env::from_pairs(env));
            let error = builder
                .into_layer::<tracing_subscriber::Registry>()
                .err()
                .unwrap();
            assert!(matches!(error, InitError::Certificate { .. }), "{error}");
            let error = error.to_string();
            assert!(
                error.contains(variable) && error.contains(file.as_str()),
                "{error}"
            );
        }
    }
}
