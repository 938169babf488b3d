//! The keys and certificates of one throwaway cluster. Called by [`super::controlplane`]. They live as long as its directory, so they
//! never expire; never use them where anybody else can reach the API server.
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, Error, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Writes `ca.crt`, `{server,admin,controller-manager}.{crt,key}` and `service-account.{key,pub}` into `dir`, which nobody else may read.
pub fn write(dir: &Path) -> Result<(), super::Error> {
    let put = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).map_err(|source| super::Error::Directory { path: dir.join(name), source })
    };
    let ca = authority()?;
    put("ca.crt", ca.pem())?;
    let leaves = [
        ("server", server()?),
        ("admin", client("lamina-admin", "system:masters")?),
        // Its own identity, for which the API server brings the rights along.
        ("controller-manager", client("system:kube-controller-manager", "system:kube-controller-manager")?),
    ];
    for (name, params) in leaves {
        let key = KeyPair::generate()?;
        put(&format!("{name}.crt"), params.signed_by(&key, &ca)?.pem())?;
        put(&format!("{name}.key"), key.serialize_pem())?;
    }
    let service_account = KeyPair::generate()?;
    put("service-account.key", service_account.serialize_pem())?;
    put("service-account.pub", service_account.public_key_pem())
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "lamina local control plane");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn server() -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(["localhost".to_owned(), "kubernetes.default.svc".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
    Ok(params)
}

/// Kubernetes reads the user from the common name and the group from the organisation.
fn client(user: &str, group: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
    Ok(params)
}
