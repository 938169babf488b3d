//! What a Connector keeps beside itself: account, certificates. Read one by one with `get`, never listed or watched, so that the
//! controller's own account need not see other Secrets.
//!
//! Called by `connector`. Nothing read here may reach a log, a status or an error: messages name keys and objects, never values.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

use crate::api::connector::{CaBundleRef, ConnectorSpec};
use crate::api::reason::Reason;
use crate::domain::observed::Trouble;
use crate::xapi::client::{Credentials, Tls};

/// Asks the API server, for `patience` at most.
#[derive(Clone)]
pub struct Reader<'a> {
    pub client: &'a Client,
    pub namespace: &'a str,
    pub patience: Duration,
}

impl Reader<'_> {
    /// `deleting`: layers of this Connector are being deleted, so that a missing Secret holds them up.
    pub async fn account(&self, secret: &str, deleting: bool) -> Result<Credentials, Trouble> {
        let found: Option<Secret> = self.get(secret, "Secret").await?;
        let Some(found) = found else {
            return Err(if deleting {
                Trouble::new(
                    Reason::CredentialsGone,
                    format!(
                        "Secret '{secret}' is gone while layers are being deleted: restore it, or set the layers' deletionPolicy to Orphan, which leaves everything in the pool as it is"
                    ),
                )
            } else {
                Trouble::new(
                    Reason::CredentialsNotFound,
                    format!(
                        "Secret '{secret}' does not exist: create it (kubectl create secret generic {secret} -n {} --type kubernetes.io/basic-auth --from-literal=username=… --from-file=password=…)",
                        self.namespace
                    ),
                )
            });
        };
        let data = found.data.unwrap_or_default();
        let value = |key: &str| match data.get(key).map(|ByteString(bytes)| std::str::from_utf8(bytes)) {
            // A file made by an editor ends with a new line, which no password does.
            Some(Ok(text)) if !text.trim_end_matches(['\r', '\n']).is_empty() => {
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            Some(Ok(_)) | None => Err(Trouble::new(
                Reason::CredentialsIncomplete,
                format!("Secret '{secret}' has no key '{key}', or it is empty: add the keys username and password"),
            )),
            Some(Err(_)) => Err(Trouble::new(
                Reason::CredentialsIncomplete,
                format!("key '{key}' of Secret '{secret}' is no text: give username and password as UTF-8"),
            )),
        };
        Ok(Credentials { username: value("username")?, password: value("password")? })
    }

    /// How the pool's certificates are to be judged.
    pub async fn tls(&self, spec: &ConnectorSpec) -> Result<Tls, Trouble> {
        let Some(tls) = &spec.tls else { return Ok(Tls::SystemRoots) };
        if let Some(pem) = &tls.ca_bundle {
            return Ok(Tls::CaBundle(pem.clone().into_bytes()));
        }
        if let Some(reference) = &tls.ca_bundle_ref {
            return self.bundle(reference).await;
        }
        if let Some(pins) = &tls.fingerprints_sha256 {
            return pins.iter().map(|text| pin(text)).collect::<Result<_, _>>().map(Tls::Fingerprints);
        }
        Ok(if tls.insecure_skip_verify == Some(true) { Tls::Insecure } else { Tls::SystemRoots })
    }

    async fn bundle(&self, CaBundleRef { name, key }: &CaBundleRef) -> Result<Tls, Trouble> {
        let found: Option<ConfigMap> = self.get(name, "ConfigMap").await?;
        let pem = found.and_then(|map| map.data.unwrap_or_default().remove(key)).ok_or_else(|| {
            let text = format!(
                "ConfigMap '{name}' or its key '{key}' does not exist: create it, or correct spec.tls.caBundleRef"
            );
            Trouble::new(Reason::CABundleNotFound, text)
        })?;
        Ok(Tls::CaBundle(pem.into_bytes()))
    }

    async fn get<K>(&self, name: &str, kind: &str) -> Result<Option<K>, Trouble>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + k8s_openapi::Metadata
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        let failed = |why: &dyn std::fmt::Display| {
            tracing::warn!(kind, name, namespace = self.namespace, error = %why, "the API server could not be asked");
            Trouble::new(
                Reason::APIServerError,
                format!("{kind} '{name}' could not be read from the Kubernetes API; it is tried again"),
            )
        };
        match tokio::time::timeout(self.patience, api.get_opt(name)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(failed(&error)),
            Err(elapsed) => Err(failed(&elapsed)),
        }
    }
}

/// A fingerprint as people copy it: 64 hexadecimal digits, with or without colons.
fn pin(text: &str) -> Result<[u8; 32], Trouble> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let byte = |at: usize| digits.get(2 * at..2 * at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
    bytes.filter(|_| digits.len() == 64).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        Trouble::new(
            Reason::FingerprintMismatch,
            format!("'{text}' is no SHA-256 fingerprint: give 64 hexadecimal digits"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(pin(&plain).unwrap(), [0xab; 32]);
        assert_eq!(pin(&colons).unwrap(), [0xab; 32]);
        for bad in ["", "ab", "é".repeat(32).as_str(), &"ab".repeat(33), &"zz".repeat(32)] {
            assert!(pin(bad).is_err(), "{bad}");
        }
    }
}
