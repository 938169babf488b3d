//! A Connector's checks: what is wrong, in the words of our conditions, with the cure.
//!
//! Pure over what was seen; called by `connector` in the order of `ConditionType::CHECKS`. The first check that fails ends them.

use super::inspect;
use super::rights::{NEEDED, Rights, WISHED};
use crate::api::ConditionType as C;
use crate::api::connector::{ConnectorSpec, Inventory, MAX_INVENTORY, Named};
use crate::api::reason::{Fault, Reason};
use crate::domain::gate::room;
use crate::domain::identity::PREFIX;
use crate::domain::observed::Trouble;
use crate::xapi::client::Tls;
use crate::xapi::error::{Error, TlsProblem, fault_of};
use crate::xapi::model::Map;
use crate::xapi::view::View;

/// Of `Reachable`.
pub const ANSWERS: &str = "an endpoint answers, with a certificate that is trusted";

/// What the checks found.
#[derive(Default)]
pub struct Outcome {
    pub passed: Vec<(C, String)>,
    /// The check that failed; none: the object itself is wrong.
    pub failed: Option<(Option<C>, Trouble)>,
    pub seen: Option<Seen>,
}

/// What is told of the pool.
pub struct Seen {
    pub product: String,
    /// Its uuid.
    pub pool: String,
    pub coordinator: String,
    pub inventory: Inventory,
}

impl Outcome {
    pub fn pass(&mut self, check: C, words: impl Into<String>) {
        self.passed.push((check, words.into()));
    }

    pub fn fail(&mut self, check: C, trouble: Trouble) {
        self.failed = Some((Some(check), trouble));
    }

    /// The object itself is wrong: no check can be made.
    pub fn invalid(what: &str) -> Self {
        let text = format!("the Connector cannot be read, {what}: correct the field that is named");
        Self { failed: Some((None, Trouble::new(Reason::InvalidObject, text))), ..Self::default() }
    }

    pub fn failure(&self) -> Option<Reason> {
        self.failed.as_ref().map(|(_, trouble)| trouble.reason)
    }

    /// Nothing failed, and not all could be asked.
    pub fn is_unfinished(&self) -> bool {
        self.failed.is_none() && self.passed.len() < C::CHECKS.len()
    }

    /// All checks passed, or all but rights that we can do without.
    pub fn is_ready(&self) -> bool {
        match self.failure() {
            None => self.passed.len() == C::CHECKS.len(),
            Some(reason) => reason.fault().is_none(),
        }
    }

    /// The pool cannot be seen.
    pub fn lost(&mut self, error: &Error, tls: &Tls, secret: &str) {
        let (check, reason, text) = match error {
            Error::NotConnected { endpoint, source } | Error::ConnectionLost { endpoint, source } => {
                let why = why(source.as_ref());
                let text =
                    format!("no endpoint answers ({endpoint}: {why}): check addresses, network and firewall (TCP 443)");
                (C::Reachable, Reason::Unreachable, text)
            }
            Error::Tls { endpoint, problem: TlsProblem::Pin { seen } } => {
                let text = format!(
                    "the certificate of {endpoint} has the SHA-256 fingerprint {seen}, which is not listed: if it is the host's own (openssl x509 -noout -fingerprint -sha256 -in /etc/xensource/xapi-ssl.pem), add it to spec.tls.fingerprintsSHA256"
                );
                (C::Reachable, Reason::FingerprintMismatch, text)
            }
            Error::Tls { endpoint, problem } => {
                let text = format!(
                    "the certificate of {endpoint} is not trusted: {problem}. Set spec.tls: fingerprintsSHA256 for self-signed certificates, caBundle for an authority of your own"
                );
                (C::Reachable, Reason::CertificateUntrusted, text)
            }
            Error::Config(what) => {
                let reason = if matches!(tls, Tls::CaBundle(_)) {
                    Reason::CABundleInvalid
                } else {
                    Reason::CertificateUntrusted
                };
                (C::Reachable, reason, format!("{what}: correct spec.tls"))
            }
            Error::Status { endpoint, .. } | Error::Garbage { endpoint, .. } => (
                C::Reachable,
                Reason::NotXenServer,
                format!("what answers at {endpoint} is not a XenServer: correct spec.endpoints"),
            ),
            Error::NoCoordinator { source, .. } if matches!(**source, Error::Tls { .. }) => {
                return self.lost(source, tls, secret);
            }
            Error::NoCoordinator { named, .. } => {
                self.pass(C::Reachable, ANSWERS);
                let text = format!(
                    "the hosts that answer are members, and their coordinator {named} does not answer: check the pool, or add an address of the coordinator to spec.endpoints"
                );
                (C::CoordinatorFound, Reason::CoordinatorUnknown, text)
            }
            Error::Api(_) if error.is_refused() => {
                self.pass(C::Reachable, ANSWERS);
                let text = format!(
                    "the pool refused the account in Secret '{secret}': correct the Secret, which is read again by itself"
                );
                (C::Authenticated, Reason::CredentialsRefused, text)
            }
            Error::Api(failure) => {
                self.pass(C::Reachable, ANSWERS);
                let code = &failure.code;
                match fault_of(failure) {
                    Fault::Wait => {
                        let text = format!("the pool is busy, starting or being upgraded ({code})");
                        (C::CoordinatorFound, Reason::WaitingForPool, text)
                    }
                    Fault::Retry | Fault::Stalled => {
                        let text = format!("the pool cannot be looked at ({code}); it is tried again");
                        (C::CoordinatorFound, Reason::PoolError, text)
                    }
                }
            }
            Error::Unreadable { .. } | Error::Behind | Error::Stream { .. } | Error::NotLeading => {
                (C::CoordinatorFound, Reason::PoolError, "the pool cannot be looked at; it is tried again".to_owned())
            }
        };
        self.fail(check, Trouble::new(reason, text));
    }

    /// Somebody let us in: is it the pool that the layers are in? `expected`: its uuid, where layers rest on it.
    pub fn coordinator(&mut self, view: &View, secret: &str, expected: Option<&str>) -> bool {
        self.pass(C::Reachable, ANSWERS);
        self.pass(C::Authenticated, format!("the account in Secret '{secret}' is let in"));
        let (Some((_, pool)), Some((_, host))) = (view.pool(), view.coordinator()) else {
            let text = "the pool does not say who its coordinator is; it is looked at again";
            self.fail(C::CoordinatorFound, Trouble::new(Reason::CoordinatorUnknown, text));
            return false;
        };
        if let Some(expected) = expected.filter(|uuid| *uuid != pool.uuid) {
            let text = format!(
                "the pool that answers is {}, not {expected}, which layers rest on; nothing is looked up or made in it: point the Connector back at that pool, or delete its layers with deletionPolicy Orphan",
                pool.uuid
            );
            self.fail(C::CoordinatorFound, Trouble::new(Reason::PoolChanged, text));
            return false;
        }
        let version = |key: &str| host.software_version.get(key).map(String::as_str).unwrap_or_default();
        let coordinator = format!("{} ({})", host.name_label, host.address);
        self.pass(C::CoordinatorFound, format!("{coordinator} answers for the pool"));
        self.seen = Some(Seen {
            product: format!("{} {}", version("product_brand"), version("product_version")).trim().to_owned(),
            pool: pool.uuid.clone(),
            coordinator,
            inventory: inventory(view),
        });
        true
    }

    /// What the Connector names in the pool. True: all of it is there and fit. `scanning`: the tools ISO may yet come to light.
    pub fn parts(&mut self, view: &View, spec: &ConnectorSpec, scanning: bool) -> bool {
        inspect::template(view, &spec.template)
            .map(|(_, vm)| self.pass(C::TemplateValid, format!("template '{}' ({})", vm.name_label, vm.uuid)))
            .map_err(|trouble| (C::TemplateValid, trouble))
            .and_then(|()| self.storage(view, spec))
            .map_err(|(check, trouble)| {
                let may_come = scanning && trouble.reason == Reason::ToolsISONotFound;
                if !may_come {
                    self.fail(check, trouble);
                }
            })
            .is_ok()
    }

    fn storage(&mut self, view: &View, spec: &ConnectorSpec) -> Result<(), (C, Trouble)> {
        let no_storage = |trouble| (C::StorageReady, trouble);
        let (sr_ref, sr) = inspect::storage(view, &spec.storage_repository).map_err(no_storage)?;
        inspect::facts(view, &sr_ref).map_or(Ok(()), |facts| room(&facts, 0, "any layer")).map_err(no_storage)?;
        self.pass(C::StorageReady, format!("storage repository '{}' ({})", sr.name_label, sr.uuid));
        let no_tools = |trouble| (C::ToolsISOFound, trouble);
        let (_, iso) = inspect::tools_iso(view, spec.tools_iso.as_deref()).map_err(no_tools)?;
        inspect::co_visible(view, &sr_ref, &iso.sr).map_err(no_tools)?;
        self.pass(C::ToolsISOFound, format!("ISO '{}' ({})", iso.name_label, iso.uuid));
        Ok(())
    }

    pub fn rights(&mut self, rights: &Rights) {
        let (needed, wished) = (rights.missing(&NEEDED), rights.missing(&WISHED));
        if !needed.is_empty() {
            let text = format!(
                "the account may not do {}: give it the role vm-power-admin, better pool-operator",
                needed.join(", ")
            );
            self.fail(C::PermissionsSufficient, Trouble::new(Reason::PermissionDenied, text));
        } else if !wished.is_empty() {
            let text = format!(
                "the account may not do {}: layers are made, but an unclean death of the pool's service can cost work of the last five minutes, and templates must have no HA priority; give it the role pool-operator",
                wished.join(", ")
            );
            self.fail(C::PermissionsSufficient, Trouble::new(Reason::PoolOperatorMissing, text));
        } else {
            self.pass(C::PermissionsSufficient, "the account may do all that is needed");
        }
    }
}

/// Why there is no connection, in words that stay the same while the cause does.
fn why(error: &(dyn std::error::Error + 'static)) -> &'static str {
    use std::io::ErrorKind as E;
    let mut at = Some(error);
    while let Some(cause) = at {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            match io.kind() {
                E::ConnectionRefused => return "connection refused",
                E::TimedOut => return "no answer in time",
                E::HostUnreachable | E::NetworkUnreachable => return "no route to it",
                E::ConnectionReset | E::ConnectionAborted | E::UnexpectedEof | E::BrokenPipe => return "it hangs up",
                // The enumeration is open, and most of its members cannot happen here.
                _ => {}
            }
        }
        if cause.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout) {
            return "no answer in time";
        }
        at = cause.source();
    }
    "the name is not known, or the connection fails"
}

/// What may be chosen from, by name.
fn inventory(view: &View) -> Inventory {
    let capped = |all: &mut dyn Iterator<Item = (&String, &String)>| {
        let mut all: Vec<_> = all.map(|(name, uuid)| Named { name: name.clone(), uuid: uuid.clone() }).collect();
        all.sort();
        all.truncate(MAX_INVENTORY);
        all
    };
    let templates = view.vms.iter().map(|(_, vm)| vm).filter(|vm| {
        // A machine in the making is a template for a moment.
        inspect::is_template(vm)
            && !vm.is_default_template
            && !vm.other_config.keys().any(|k| k.starts_with(PREFIX))
            && !vm.name_label.starts_with("lamina-")
    });
    let srs =
        view.srs.iter().map(|(_, sr)| sr).filter(|sr| sr.content_type != "iso" && inspect::can_hold_layers(view, sr));
    let internal = |keys: &Map| {
        ["is_host_internal_management_network", "is_guest_installer_network"]
            .iter()
            .any(|key| keys.get(*key).is_some_and(|v| v == "true"))
    };
    let networks = view.networks.iter().map(|(_, network)| network).filter(|network| !internal(&network.other_config));
    Inventory {
        templates: capped(&mut templates.map(|vm| (&vm.name_label, &vm.uuid))),
        storage_repositories: capped(&mut srs.map(|sr| (&sr.name_label, &sr.uuid))),
        networks: capped(&mut networks.map(|network| (&network.name_label, &network.uuid))),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
