//! What an account may do in a pool, against what Lamina has a use for. Pure; asked for by `link`, judged by `checks`.

use std::collections::HashSet;

/// Without these a layer cannot be made; in lower case, as XAPI names permissions. A test compares them with the calls that we make.
pub const NEEDED: [&str; 43] = [
    "sr.scan",
    "vbd.create",
    "vbd.destroy",
    "vbd.eject",
    "vbd.insert",
    "vbd.unplug",
    "vdi.add_tags",
    "vdi.add_to_other_config",
    "vdi.clone",
    "vdi.create",
    "vdi.destroy",
    "vdi.remove_from_other_config",
    "vdi.remove_from_sm_config",
    "vdi.resize",
    "vdi.set_name_description",
    "vdi.set_name_label",
    "vdi.set_other_config",
    "vdi.set_tags",
    "vdi.snapshot",
    "vif.create",
    "vif.destroy",
    "vm.add_tags",
    "vm.add_to_other_config",
    "vm.clone",
    "vm.destroy",
    "vm.hard_shutdown",
    "vm.remove_from_other_config",
    "vm.set_actions_after_crash",
    "vm.set_actions_after_reboot",
    "vm.set_actions_after_shutdown",
    "vm.set_affinity",
    "vm.set_blocked_operations",
    "vm.set_hvm_boot_params",
    "vm.set_is_a_template",
    "vm.set_memory_limits",
    "vm.set_name_description",
    "vm.set_name_label",
    "vm.set_other_config",
    "vm.set_tags",
    "vm.set_vcpus_at_startup",
    "vm.set_vcpus_max",
    "vm.set_xenstore_data",
    "vm.start",
];
/// Without these we go on, and say so: they are for pool-operators.
pub const WISHED: [&str; 2] = ["pool.sync_database", "vm.set_ha_restart_priority"];

/// What the account may do.
#[derive(Clone, Debug, PartialEq)]
pub enum Rights {
    /// The local root, who is above roles.
    All,
    /// As XAPI lists them, in lower case.
    These(HashSet<String>),
}

impl Rights {
    /// `granted`: none of the local root.
    pub fn of(granted: Option<Vec<String>>) -> Self {
        granted.map_or(Self::All, |granted| Self::These(granted.into_iter().collect()))
    }

    /// How many rights that we have a use for are missing.
    pub fn lacking(&self) -> usize {
        self.missing(&NEEDED).len() + self.missing(&WISHED).len()
    }

    pub fn missing(&self, wanted: &[&'static str]) -> Vec<&'static str> {
        match self {
            Self::All => Vec::new(),
            Self::These(granted) => wanted.iter().copied().filter(|w| !granted.contains(*w)).collect(),
        }
    }
}
