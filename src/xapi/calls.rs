//! Every call that Lamina makes, by the door it goes through. `client.read()` changes nothing; `client.write()` changes the
//! database and has happened when it returns; `client.start(op)` begins work in storage or hypervisor, tagged with `op`, and
//! returns the task, whose end the mirror shows; only the two streams wait for their own end. Names are XAPI's, class first.
//!
//! The only place that uses the client's doors for changes: what is not here cannot be done to a pool.

use std::collections::HashMap;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::Client;
use super::error::Error;
use super::model::{Class, Map, VbdType};
use super::wire::Ref;

impl Client {
    pub fn read(&self) -> Read<'_> {
        Read(self)
    }

    pub fn write(&self) -> Write<'_> {
        Write(self)
    }

    pub fn start<'a>(&'a self, op: &'a str) -> Start<'a> {
        Start { client: self, op }
    }
}

/// Calls that change nothing.
#[derive(Clone, Copy)]
pub struct Read<'a>(&'a Client);

/// Calls that change the database only: done, with nothing to wait for, when they return.
#[derive(Clone, Copy)]
pub struct Write<'a>(&'a Client);

/// Calls that reach storage or hypervisor; each returns its task.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    client: &'a Client,
    op: &'a str,
}

/// The rows of a class. `odd`: rows that are there and cannot be read, so that "not found" is not said of them.
#[derive(Clone, Debug)]
pub struct Records<T> {
    pub found: HashMap<Ref, T>,
    pub odd: Vec<Ref>,
}

impl Read<'_> {
    pub async fn get_record<T: Class>(self, reference: &Ref) -> Result<T, Error> {
        self.0.send_read(&format!("{}.get_record", T::NAME), &[json!(reference)]).await
    }

    /// Fails with `UUID_INVALID` where there is none.
    pub async fn get_by_uuid<T: Class>(self, uuid: &str) -> Result<Ref, Error> {
        self.0.send_read(&format!("{}.get_by_uuid", T::NAME), &[json!(uuid)]).await
    }

    pub async fn get_all_records<T: Class>(self) -> Result<Records<T>, Error> {
        self.records("get_all_records", &[]).await
    }

    /// The rows whose `field` is `value`. Fields are named as in XAPI's database (`SR`, `name__label`); maps and sets
    /// cannot be searched, and a value with a quotation mark cannot be expressed.
    pub async fn get_all_records_where<T: Class>(self, field: &str, value: &str) -> Result<Records<T>, Error> {
        self.records("get_all_records_where", &[json!(format!("field \"{field}\" = \"{value}\""))]).await
    }

    async fn records<T: Class>(self, call: &str, params: &[Value]) -> Result<Records<T>, Error> {
        let rows: HashMap<Ref, Box<RawValue>> = self.0.send_read(&format!("{}.{call}", T::NAME), params).await?;
        let mut records = Records { found: HashMap::with_capacity(rows.len()), odd: Vec::new() };
        for (reference, row) in rows {
            match parse(&reference, &row) {
                Some(record) => drop(records.found.insert(reference, record)),
                None => records.odd.push(reference),
            }
        }
        Ok(records)
    }

    /// Fails with the reason why the machine could not start there.
    pub async fn vm_assert_can_boot_here(self, vm: &Ref, host: &Ref) -> Result<(), Error> {
        self.0.send_read::<IgnoredAny>("VM.assert_can_boot_here", &[json!(vm), json!(host)]).await.map(drop)
    }

    /// The host's own time, in XAPI's form.
    pub async fn host_servertime(self, host: &Ref) -> Result<String, Error> {
        self.0.send_read("host.get_servertime", &[json!(host)]).await
    }

    /// What our session may do: calls in lower case, e.g. `sr.scan`. Says nothing of the local root, which is above roles.
    pub async fn permissions(self) -> Result<Vec<String>, Error> {
        self.0.send_read_of_session("session.get_rbac_permissions").await
    }

    /// The local root, who may do everything.
    pub async fn is_superuser(self) -> Result<bool, Error> {
        self.0.send_read_of_session("session.get_is_local_superuser").await
    }
}

/// A record as text, or `None` and a line in the log: fields change their types between ages of hosts, and one odd row must
/// not hide the others.
pub(super) fn parse<T: Class>(reference: &Ref, row: &RawValue) -> Option<T> {
    serde_json::from_str(row.get())
        .inspect_err(|error| tracing::warn!(class = T::NAME, %reference, %error, "a record cannot be read"))
        .ok()
}

/// A drive of a machine.
#[derive(Clone, Debug)]
pub struct NewVbd<'a> {
    pub vm: &'a Ref,
    /// Null: an empty drive, which only a CD may be.
    pub vdi: &'a Ref,
    pub userdevice: &'a str,
    pub bootable: bool,
    pub read_only: bool,
    pub kind: VbdType,
}

/// A disk to be made.
#[derive(Clone, Debug)]
pub struct NewVdi<'a> {
    pub sr: &'a Ref,
    pub name: &'a str,
    pub description: &'a str,
    /// Bytes; the driver rounds it up.
    pub size: i64,
}

/// A network card of a machine, with a MAC address of XAPI's making.
#[derive(Clone, Debug)]
pub struct NewVif<'a> {
    pub vm: &'a Ref,
    pub network: &'a Ref,
    pub device: &'a str,
}

impl Write<'_> {
    /// Never with the key `owner`, which would let other tools delete the disk with the machine.
    pub async fn vbd_create(self, new: &NewVbd<'_>) -> Result<Ref, Error> {
        let record = json!({
            "VM": new.vm, "VDI": new.vdi, "userdevice": new.userdevice, "bootable": new.bootable,
            "mode": if new.read_only { "RO" } else { "RW" }, "type": new.kind, "empty": new.vdi.is_null(),
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        });
        self.0.send_write("VBD.create", &[record]).await
    }

    pub async fn vif_create(self, new: &NewVif<'_>) -> Result<Ref, Error> {
        let record = json!({
            "VM": new.vm, "network": new.network, "device": new.device, "MAC": "", "MTU": 1500,
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        });
        self.0.send_write("VIF.create", &[record]).await
    }

    /// A task of our own, for a stream to end. Named and described for people; it bears no tag yet.
    pub(super) async fn task_create(self, label: &str, description: &str) -> Result<Ref, Error> {
        self.0.send_write("task.create", &[json!(label), json!(description)]).await
    }

    /// Writes XAPI's database out, on every host: what was changed before survives an unclean death.
    pub async fn pool_sync_database(self) -> Result<(), Error> {
        self.0.send_write::<IgnoredAny>("pool.sync_database", &[]).await.map(drop)
    }
}

impl Start<'_> {
    /// Result: the disk, empty. Named from the start; keys and tags come with its claim.
    pub async fn vdi_create(self, new: &NewVdi<'_>) -> Result<Ref, Error> {
        let record = json!({
            "SR": new.sr, "virtual_size": new.size, "name_label": new.name, "name_description": new.description,
            "type": "user", "sharable": false, "read_only": false, "other_config": {}, "xenstore_data": {},
            "sm_config": {}, "tags": [],
        });
        self.client.send_tagged("VDI.create", &[record], self.op).await
    }

    /// Replaces the first bytes of a detached disk, and waits for the verdict: a transfer has no task that outlives it.
    pub async fn import_raw_vdi(self, vdi: &Ref, bytes: &[u8]) -> Result<(), Error> {
        self.client.send_in(vdi, bytes, self.op).await
    }

    /// All bytes of a detached disk of this size; any other length is an error. Waits for the verdict too.
    pub async fn export_raw_vdi(self, vdi: &Ref, size: usize) -> Result<Vec<u8>, Error> {
        self.client.send_out(vdi, size, self.op).await
    }
}

/// One line a call: our name and parameters, XAPI's name.
macro_rules! calls {
    (write { $($(#[$doc:meta])* $name:ident($($arg:ident: $kind:ty),*) $method:literal;)* }) => {
        impl Write<'_> { $(
            $(#[$doc])*
            pub async fn $name(self, $($arg: $kind),*) -> Result<(), Error> {
                self.0.send_write::<IgnoredAny>($method, &[$(json!($arg)),*]).await.map(drop)
            }
        )* }
    };
    (start { $($(#[$doc:meta])* $name:ident($($arg:ident: $kind:ty),*) $method:literal $([$($fixed:expr),*])?;)* }) => {
        impl Start<'_> { $(
            $(#[$doc])*
            pub async fn $name(self, $($arg: $kind),*) -> Result<Ref, Error> {
                self.client.send_tagged($method, &[$(json!($arg),)* $($(json!($fixed)),*)?], self.op).await
            }
        )* }
    };
}

calls! { write {
    /// Replaces every key, other tools' too, in one step: for objects of our own.
    vdi_set_other_config(vdi: &Ref, map: &Map) "VDI.set_other_config";
    /// A test-and-set: `MAP_DUPLICATE_KEY` if the key is there, even with this value.
    vdi_add_to_other_config(vdi: &Ref, key: &str, value: &str) "VDI.add_to_other_config";
    /// No failure if the key is not there.
    vdi_remove_from_other_config(vdi: &Ref, key: &str) "VDI.remove_from_other_config";
    vdi_remove_from_sm_config(vdi: &Ref, key: &str) "VDI.remove_from_sm_config";
    vdi_set_tags(vdi: &Ref, tags: &[String]) "VDI.set_tags";
    /// No failure if the tag is there.
    vdi_add_tags(vdi: &Ref, value: &str) "VDI.add_tags";

    vm_set_is_a_template(vm: &Ref, value: bool) "VM.set_is_a_template";
    vm_set_name_label(vm: &Ref, value: &str) "VM.set_name_label";
    vm_set_name_description(vm: &Ref, value: &str) "VM.set_name_description";
    vm_set_tags(vm: &Ref, tags: &[String]) "VM.set_tags";
    /// No failure if the tag is there.
    vm_add_tags(vm: &Ref, value: &str) "VM.add_tags";
    vm_set_other_config(vm: &Ref, map: &Map) "VM.set_other_config";
    vm_add_to_other_config(vm: &Ref, key: &str, value: &str) "VM.add_to_other_config";
    vm_remove_from_other_config(vm: &Ref, key: &str) "VM.remove_from_other_config";
    /// Bytes, static min ≤ dynamic min ≤ dynamic max ≤ static max.
    vm_set_memory_limits(vm: &Ref, static_min: i64, static_max: i64, dynamic_min: i64, dynamic_max: i64)
        "VM.set_memory_limits";
    /// Raise this before `VCPUs_at_startup`, lower it after.
    vm_set_vcpus_max(vm: &Ref, value: i64) "VM.set_VCPUs_max";
    vm_set_vcpus_at_startup(vm: &Ref, value: i64) "VM.set_VCPUs_at_startup";
    vm_set_hvm_boot_params(vm: &Ref, map: &Map) "VM.set_HVM_boot_params";
    vm_set_actions_after_shutdown(vm: &Ref, value: &str) "VM.set_actions_after_shutdown";
    vm_set_actions_after_reboot(vm: &Ref, value: &str) "VM.set_actions_after_reboot";
    vm_set_actions_after_crash(vm: &Ref, value: &str) "VM.set_actions_after_crash";
    /// Needs pool-operator.
    vm_set_ha_restart_priority(vm: &Ref, value: &str) "VM.set_ha_restart_priority";
    vm_set_affinity(vm: &Ref, host: &Ref) "VM.set_affinity";
    vm_set_blocked_operations(vm: &Ref, map: &Map) "VM.set_blocked_operations";
    /// Only while halted: on a running machine the guest would lose the right to write there.
    vm_set_xenstore_data(vm: &Ref, map: &Map) "VM.set_xenstore_data";

    vbd_destroy(vbd: &Ref) "VBD.destroy";
    vif_destroy(vif: &Ref) "VIF.destroy";
    /// Ends a task of our own: `cancelled`.
    task_set_status(task: &Ref, value: &str) "task.set_status";
    /// How a task of our own gets its tag.
    task_add_to_other_config(task: &Ref, key: &str, value: &str) "task.add_to_other_config";
    /// Stops a queued call; a running one goes on.
    task_cancel(task: &Ref) "task.cancel";
    /// A pending one is only marked, and goes when it ends.
    task_destroy(task: &Ref) "task.destroy";
} }

calls! { start {
    /// Result: the snapshot, which bears the source's keys and tags.
    vdi_snapshot(vdi: &Ref) "VDI.snapshot" [json!({})];
    /// Result: the clone, which bears the source's keys and tags.
    vdi_clone(vdi: &Ref) "VDI.clone" [json!({})];
    /// Bytes; grows only, and is rounded up.
    vdi_resize(vdi: &Ref, size: i64) "VDI.resize";
    vdi_destroy(vdi: &Ref) "VDI.destroy";
    vdi_set_name_label(vdi: &Ref, value: &str) "VDI.set_name_label";
    vdi_set_name_description(vdi: &Ref, value: &str) "VDI.set_name_description";

    /// Result: the new machine, still a template if the source is one.
    vm_clone(vm: &Ref, name: &str) "VM.clone";
    vm_start(vm: &Ref) "VM.start" [false, false];
    vm_hard_shutdown(vm: &Ref) "VM.hard_shutdown";
    /// Takes the machine's drives away, never its disks.
    vm_destroy(vm: &Ref) "VM.destroy";

    vbd_insert(vbd: &Ref, vdi: &Ref) "VBD.insert";
    vbd_eject(vbd: &Ref) "VBD.eject";
    vbd_unplug(vbd: &Ref) "VBD.unplug";
    /// Finds disks without a row, corrects sizes.
    sr_scan(sr: &Ref) "SR.scan";
} }
