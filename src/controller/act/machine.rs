//! The packaging machine's settings, network cards, drives and keys: database only, compared one by one and written one by one.
//!
//! Called by `act` alone.

use super::{Done, Failed, Hand, already, gone_is_done, written};
use crate::api::reason::Reason;
use crate::domain::identity::{self, Keys, NONCE, Role};
use crate::domain::observed::{Setting, Trouble};
use crate::domain::{plan, report};
use crate::xapi::calls::{NewVbd, NewVif};
use crate::xapi::model::{VbdType, Vm};
use crate::xapi::wire::{NEVER, Ref};

/// Device numbers: the packaging disk boots as the first, the drive sits where every tool expects it.
const DISK_DEVICE: &str = "0";
const CONFIG_DEVICE: &str = "1";
const DVD_DEVICE: &str = "3";

impl Hand<'_, '_> {
    pub(super) async fn set_up(&self, uuid: &str, settings: &[Setting]) -> Done {
        let vm = self.vm(uuid)?;
        for setting in settings {
            self.set(uuid, &vm, setting).await?;
        }
        Ok(None)
    }

    pub(super) async fn set(&self, uuid: &str, vm: &Ref, setting: &Setting) -> Done {
        let record = self.vm_record(uuid)?;
        let client = &self.lens.pool.client;
        let done = match setting {
            Setting::NotTemplate => client.write().vm_set_is_a_template(vm, false).await,
            Setting::Name(name) => client.write().vm_set_name_label(vm, name).await,
            Setting::Description(text) => client.write().vm_set_name_description(vm, text).await,
            Setting::Tags(tags) => client.write().vm_set_tags(vm, tags).await,
            // The number at start may never exceed the most: which goes first depends on the direction.
            Setting::Vcpus { max, lower: true } => match client.write().vm_set_vcpus_at_startup(vm, *max).await {
                Ok(()) => client.write().vm_set_vcpus_max(vm, *max).await,
                Err(e) => Err(e),
            },
            Setting::Vcpus { max, lower: false } => match client.write().vm_set_vcpus_max(vm, *max).await {
                Ok(()) => client.write().vm_set_vcpus_at_startup(vm, *max).await,
                Err(e) => Err(e),
            },
            Setting::Memory(bytes) => {
                let least = record.memory_static_min.min(*bytes);
                client.write().vm_set_memory_limits(vm, least, *bytes, *bytes, *bytes).await
            }
            Setting::Firmware(firmware) => {
                let mut params = record.hvm_boot_params.clone();
                params.insert("firmware".to_owned(), firmware.clone());
                client.write().vm_set_hvm_boot_params(vm, &params).await
            }
            Setting::Networks(wanted) => return self.networks(vm, record, wanted).await,
            Setting::AfterShutdown => client.write().vm_set_actions_after_shutdown(vm, "destroy").await,
            Setting::AfterReboot => client.write().vm_set_actions_after_reboot(vm, "restart").await,
            Setting::AfterCrash => client.write().vm_set_actions_after_crash(vm, "preserve").await,
            Setting::NoAutoPowerOn => client.write().vm_remove_from_other_config(vm, "auto_poweron").await,
            Setting::NoHa => match client.write().vm_set_ha_restart_priority(vm, "").await {
                Err(e) if e.is_code("RBAC_PERMISSION_DENIED") => return Err(Failed::Told(ha_stays(record))),
                done => done,
            },
            Setting::NoAffinity => client.write().vm_set_affinity(vm, &Ref::null()).await,
            Setting::Blocked(blocked) => {
                let mut all = record.blocked_operations.clone();
                all.extend(blocked.clone());
                client.write().vm_set_blocked_operations(vm, &all).await
            }
            Setting::Xenstore(keys) => client.write().vm_set_xenstore_data(vm, keys).await,
            Setting::StartBefore(time) => {
                let time = if time.is_empty() { NEVER } else { time };
                return already(
                    written(client.write().vm_add_to_other_config(vm, identity::START_BEFORE, time).await),
                    "MAP_DUPLICATE_KEY",
                );
            }
        };
        written(done)
    }

    /// Network cards as wanted, in order: what is not as wanted is made anew.
    pub(super) async fn networks(&self, vm: &Ref, record: &Vm, wanted: &[String]) -> Done {
        let client = &self.lens.pool.client;
        for vif in &record.vifs {
            gone_is_done(written(client.write().vif_destroy(vif).await))?;
        }
        for (device, uuid) in wanted.iter().enumerate() {
            let network = self.lens.view.networks.by_uuid(uuid).map(|(r, _)| r.clone()).ok_or(Failed::Stale)?;
            let device = device.to_string();
            client.write().vif_create(&NewVif { vm, network: &network, device: &device }).await?;
        }
        Ok(None)
    }

    pub(super) async fn attach(&self, machine: &str, disk: &str) -> Done {
        self.attach_as(machine, disk, DISK_DEVICE).await
    }

    pub(super) async fn attach_config(&self, machine: &str, disk: &str) -> Done {
        self.attach_as(machine, disk, CONFIG_DEVICE).await
    }

    async fn attach_as(&self, machine: &str, disk: &str, device: &str) -> Done {
        let (vm, vdi) = (self.vm(machine)?, self.vdi(disk)?);
        let new = NewVbd {
            vm: &vm,
            vdi: &vdi,
            userdevice: device,
            bootable: device == DISK_DEVICE,
            read_only: false,
            kind: VbdType::Disk,
        };
        already(written(self.lens.pool.client.write().vbd_create(&new).await.map(drop)), "DEVICE_ALREADY_EXISTS")
    }

    pub(super) async fn add_dvd(&self, machine: &str) -> Done {
        let (vm, empty) = (self.vm(machine)?, Ref::null());
        let new = NewVbd {
            vm: &vm,
            vdi: &empty,
            userdevice: DVD_DEVICE,
            bootable: false,
            read_only: true,
            kind: VbdType::Cd,
        };
        already(written(self.lens.pool.client.write().vbd_create(&new).await.map(drop)), "DEVICE_ALREADY_EXISTS")
    }

    /// Not atomic: whoever reads in between sees no key, and decides again.
    pub(super) async fn put_key(&self, machine: &str, key: &str, value: &str) -> Done {
        let (client, vm) = (&self.lens.pool.client, self.vm(machine)?);
        client.write().vm_remove_from_other_config(&vm, key).await?;
        already(written(client.write().vm_add_to_other_config(&vm, key, value).await), "MAP_DUPLICATE_KEY")
    }

    pub(super) async fn block(&self, machine: &str, change: impl FnOnce(&mut Keys, &String)) -> Done {
        let mut blocked = self.vm_record(machine)?.blocked_operations.clone();
        change(&mut blocked, &plan::blocked_for(self.lens.want));
        written(self.lens.pool.client.write().vm_set_blocked_operations(&self.vm(machine)?, &blocked).await)
    }

    /// A machine that lost its keys has lost its boots too: no report of before counts any more. If it may have run it is taken to have.
    pub(super) async fn key_machine_again(&self, uuid: &str, vm: &Vm) -> Done {
        // What the guest was told is what it will repeat.
        let told = vm.xenstore_data.get(&format!("{}nonce", report::PREFIX)).filter(|nonce| !nonce.is_empty());
        let nonce = told.cloned().unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
        let mut keys = vm.other_config.clone();
        keys.extend(self.lineage(Role::Machine).keys(uuid, None, &[(NONCE, &nonce)]));
        if self.scene.observed.records.disk.as_ref().is_some_and(|d| d.worked) {
            keys.entry(identity::START_BEFORE.to_owned()).or_insert_with(|| "unknown".to_owned());
        }
        written(self.lens.pool.client.write().vm_set_other_config(&self.vm(uuid)?, &keys).await)
    }
}

/// HA would start a machine again that was shut down for finalize, and only a pool-operator may take it off.
fn ha_stays(vm: &Vm) -> Trouble {
    Trouble::new(
        Reason::PermissionDenied,
        format!(
            "machine '{}' has an HA restart priority from its template, which the Connector's account may not take off: give it the role \
             pool-operator, or take it off as an administrator, of the template too: xe vm-param-set uuid={} ha-restart-priority=",
            vm.name_label, vm.uuid
        ),
    )
}
