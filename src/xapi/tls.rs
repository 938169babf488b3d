//! Whom the client believes: system roots, a CA bundle, pinned fingerprints, or (loudly, by the user's word) anybody.
//! Used by the client alone. A pin replaces the chain and the name, never the proof that the host holds the key.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use super::error::{Error, TlsProblem};

/// How a pool's certificates are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    SystemRoots,
    /// PEM, one certificate or more.
    CaBundle(Vec<u8>),
    /// SHA-256 of the hosts' certificates (DER), one per host: each host of a pool has its own.
    Fingerprints(Vec<[u8; 32]>),
    Insecure,
}

/// The TLS settings of both HTTP clients of a pool.
pub fn config(tls: &Tls) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Config(format!("no usable TLS versions: {e}")))?;
    let pinned = |pins: Option<Vec<[u8; 32]>>| Arc::new(Pinned { pins, algorithms });
    Ok(match tls {
        Tls::SystemRoots => builder.with_root_certificates(system_roots()?),
        Tls::CaBundle(pem) => builder.with_root_certificates(bundle(pem)?),
        Tls::Fingerprints(pins) => builder.dangerous().with_custom_certificate_verifier(pinned(Some(pins.clone()))),
        Tls::Insecure => builder.dangerous().with_custom_certificate_verifier(pinned(None)),
    }
    .with_no_client_auth())
}

fn system_roots() -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    // Systems ship odd certificates now and then; one bad one must not shut out the rest.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Error::Config("this system has no root certificates: set a CA bundle or fingerprints".to_owned()));
    }
    Ok(roots)
}

fn bundle(pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| Error::Config(format!("the CA bundle is no PEM: {e}")))?;
        roots.add(certificate).map_err(|e| Error::Config(format!("the CA bundle holds a bad certificate: {e}")))?;
    }
    if roots.is_empty() {
        return Err(Error::Config("the CA bundle holds no certificate".to_owned()));
    }
    Ok(roots)
}

/// Accepts the certificates with these digests, or any.
#[derive(Debug)]
struct Pinned {
    pins: Option<Vec<[u8; 32]>>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Travels through rustls and reqwest, so that the user can be told what was seen.
#[derive(Debug, thiserror::Error)]
#[error("fingerprint {0} is not pinned")]
struct Unpinned(String);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen: [u8; 32] = Sha256::digest(end_entity).into();
        if self.pins.as_ref().is_none_or(|pins| pins.contains(&seen)) {
            return Ok(ServerCertVerified::assertion());
        }
        let hex = seen.iter().map(|b| format!("{b:02x}")).collect();
        Err(CertificateError::Other(OtherError(Arc::new(Unpinned(hex)))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The certificate problem at the root of a failed connection, if that is what it was.
pub fn problem(error: &(dyn std::error::Error + 'static)) -> Option<TlsProblem> {
    if let Some(rustls::Error::InvalidCertificate(problem)) = error.downcast_ref() {
        return Some(sort(problem));
    }
    // An io::Error leaves what it carries out of its chain of sources, and the HTTP library puts one into another.
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => problem(inner),
        None => problem(error.source()?),
    }
}

fn sort(problem: &CertificateError) -> TlsProblem {
    match problem {
        CertificateError::Other(other) => match other.0.downcast_ref::<Unpinned>() {
            Some(Unpinned(seen)) => TlsProblem::Pin { seen: seen.clone() },
            None => TlsProblem::Other(other.to_string()),
        },
        // A bad signature: a trusted name, but another key, as after a host was installed anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsProblem::Untrusted,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => TlsProblem::Name,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => TlsProblem::Expired,
        // The enumeration is open: rustls adds to it.
        other => TlsProblem::Other(other.to_string()),
    }
}
