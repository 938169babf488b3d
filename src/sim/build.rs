//! The world that a pool begins with: three hosts, their storage, templates, an OS disk; and what a world file adds, or has in their place.
//!
//! Run once, by `serve`, on an empty database. The default world needs no arguments.
//! Longer than most: a list of rows gains nothing by a cut.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    allowed,
    db::Db,
    disk::{Format, Node, pattern},
    plan::{Mistake, Repository, Template, WorldFile},
    row,
    vbd::made_up_mac,
    vdi,
    world::World,
};
use crate::xapi::wire::{NEVER, Ref};

const GIB: u64 = 1 << 30;
/// The default world's networks.
const NETWORKS: [&str; 2] = ["Pool-wide network associated with eth0", "Packaging"];

impl World {
    /// Makes the world's rows and disks in an empty database.
    ///
    /// # Errors
    /// Where the file names what is not there.
    pub fn populate(db: &mut Db, file: &WorldFile) -> Result<Self, Mistake> {
        let mut build =
            Build { world: Self::default(), db, hosts: Vec::new(), default: Ref::null(), network: Ref::null() };
        let mut networks: Vec<&str> = if file.replace { Vec::new() } else { NETWORKS.to_vec() };
        networks.extend(file.networks.iter().map(String::as_str));
        match file.hosts.unwrap_or(3) {
            count @ 1..=16 => build.hosts(count, &networks),
            count => return Err(Mistake::Hosts(count)),
        }
        build.drivers();
        if !file.replace {
            build.storage();
        }
        for sr in &file.repositories {
            build.described(sr);
        }
        let first = file.repositories.iter().find(|sr| sr.kind != "iso").filter(|_| file.replace);
        if let Some(name) = file.default_repository.as_ref().or(first.map(|sr| &sr.name)) {
            let sr = build.named("SR", name).ok_or_else(|| Mistake::Repository(name.clone()))?;
            build.make_default(sr);
        }
        if !file.replace {
            build.defaults();
        }
        for disk in &file.disks {
            let sr = match &disk.repository {
                Some(name) => build.named("SR", name).ok_or_else(|| Mistake::Repository(name.clone()))?,
                None if build.default.is_null() => return Err(Mistake::Homeless(disk.name.clone())),
                None => build.default.clone(),
            };
            build.disk(&disk.name, &sr, disk.size_gib * GIB, disk.format, &disk.blocks);
        }
        for template in &file.templates {
            if template.network && build.network.is_null() {
                return Err(Mistake::Network(template.name.clone()));
            }
            if !template.disks_gib.is_empty() && build.default.is_null() {
                return Err(Mistake::Homeless(format!("{} 0", template.name)));
            }
            build.template(template, false);
        }
        let Build { world, db, .. } = build;
        allowed::settle(db, "VM");
        allowed::settle(db, "VDI");
        Ok(world)
    }
}

/// A world in the making.
struct Build<'a> {
    world: World,
    db: &'a mut Db,
    hosts: Vec<Ref>,
    default: Ref,
    network: Ref,
}

impl Build<'_> {
    fn named(&self, class: &str, name: &str) -> Option<Ref> {
        let hit = self.db.all(class).find(|(_, row)| row.get("name_label").and_then(Value::as_str) == Some(name));
        hit.map(|(r, _)| r.clone())
    }

    /// Hosts with addresses 127.0.0.1 and on: listeners follow `host.address`. Each has a card in every network but the internal one.
    fn hosts(&mut self, count: u8, networks: &[&str]) {
        let version = json!({
            "product_version": "8.4.0", "product_version_text": "8", "product_brand": "XenServer", "platform_name": "XCP",
            "platform_version": "3.4.0", "xapi": "26.17", "xapi_build": "26.17.0", "xen": "4.17", "build_number": "cloud",
            "hostname": "localhost", "date": "2026-08-01", "db_schema": "5.900",
        });
        let mut network = |name: &str, bridge: String| {
            let fields = [
                ("name_label", json!(name)),
                ("bridge", json!(bridge)),
                ("MTU", json!(1500)),
                ("managed", json!(true)),
            ];
            self.db.create("network", fields)
        };
        let networks: Vec<Ref> =
            networks.iter().enumerate().map(|(n, name)| network(name, format!("xenbr{n}"))).collect();
        network("Internal", "xapi0".to_owned());
        for i in 1..=count {
            let total = 64 * GIB;
            let metrics = [("live", json!(true)), ("memory_total", json!(total)), ("memory_free", json!(total))];
            let metrics = self.db.create("host_metrics", metrics);
            let name = format!("host{i}");
            let host = self.db.create(
                "host",
                [
                    ("name_label", json!(name)),
                    ("address", json!(format!("127.0.0.{i}"))),
                    ("hostname", json!(name)),
                    ("enabled", json!(true)),
                    ("API_version_major", json!(2)),
                    ("API_version_minor", json!(23)),
                    ("API_version_vendor", json!("XenSource")),
                    ("software_version", version.clone()),
                    ("edition", json!("premium-per-socket")),
                    ("metrics", json!(metrics)),
                    ("other_config", json!({"agent_start_time": "0."})),
                ],
            );
            let vm = [
                ("name_label", json!(format!("Control domain on host: {name}"))),
                ("is_control_domain", json!(true)),
                ("power_state", json!("Running")),
                ("resident_on", json!(host)),
                ("memory_static_max", json!(4 * GIB)),
            ];
            let dom0 = self.db.create("VM", vm);
            // The row is there: it was made a moment ago.
            self.db.set("host", &host, "control_domain", json!(dom0)).unwrap_or_default();
            for (n, network) in networks.iter().enumerate() {
                let pif = [
                    ("device", json!(format!("eth{n}"))),
                    ("host", json!(host)),
                    ("network", json!(network)),
                    ("management", json!(n == 0)),
                ];
                self.db.create("PIF", pif);
            }
            self.hosts.push(host);
        }
        self.network = networks.into_iter().next().unwrap_or_default();
        let master = self.hosts.first().cloned().unwrap_or_default();
        self.db.create("pool", [("name_label", json!("pool")), ("master", json!(master))]);
    }

    /// What storage can do, by the type of its repository (xapi.md 2.4).
    fn drivers(&mut self) {
        let vhd = [
            "VDI_CREATE",
            "VDI_DELETE",
            "VDI_CLONE",
            "VDI_SNAPSHOT",
            "VDI_RESIZE",
            "VDI_CONFIG_CBT",
            "VDI_RESET_ON_BOOT",
            "VDI_ATTACH",
            "VDI_DETACH",
            "SR_SCAN",
            "SR_UPDATE",
            "VDI_UPDATE",
            "VDI_INTRODUCE",
        ];
        let iso = ["SR_SCAN", "VDI_ATTACH", "VDI_DETACH"];
        let drivers = ["nfs", "ext", "lvm", "lvmoiscsi", "lvmohba", "smb"].map(|kind| (kind, vhd.as_slice()));
        for (kind, features) in drivers.into_iter().chain([("iso", iso.as_slice()), ("udev", iso.as_slice())]) {
            let map: serde_json::Map<String, Value> = features.iter().map(|f| ((*f).to_owned(), json!(1))).collect();
            self.db
                .create("SM", [("type", json!(kind)), ("name_label", json!(kind)), ("features", Value::Object(map))]);
        }
    }

    fn storage(&mut self) {
        let shared = self.repository("Shared storage", "nfs", 2048 * GIB, true, &[]);
        self.make_default(shared);
        for host in self.hosts.clone() {
            self.local(&host);
        }
        let isos = self.repository("ISO library", "iso", 100 * GIB, true, &[]);
        self.file("guest-tools.iso", &isos);
        let marks = [("xenserver_tools_sr", "true"), ("xensource_internal", "true")];
        let tools = self.repository("XenServer Tools", "iso", GIB, true, &marks);
        self.db.set("SR", &tools, "is_tools_sr", json!(true)).unwrap_or_default();
    }

    fn make_default(&mut self, sr: Ref) {
        let pools: Vec<Ref> = self.db.all("pool").map(|(r, _)| r.clone()).collect();
        for row in pools {
            for field in ["default_SR", "suspend_image_SR", "crash_dump_SR"] {
                self.db.set("pool", &row, field, json!(sr)).unwrap_or_default();
            }
        }
        self.default = sr;
    }

    fn described(&mut self, wanted: &Repository) {
        let sr = self.repository(&wanted.name, &wanted.kind, wanted.size_gib * GIB, wanted.shared, &[]);
        wanted.files.iter().for_each(|name| self.file(name, &sr));
    }

    /// A disc image.
    fn file(&mut self, name: &str, sr: &Ref) {
        let file = Node { virtual_size: 440 << 20, name: Some(name.to_owned()), ..Node::default() };
        self.add_disk(name, sr, file, &[]);
    }

    fn local(&mut self, host: &Ref) {
        let name = self.db.text("host", host, "name_label").unwrap_or_default().to_owned();
        let sr = self.sr_row(&format!("Local storage on {name}"), "ext", 500 * GIB, false, &[]);
        self.pbd(host, &sr);
    }

    fn repository(&mut self, name: &str, kind: &str, size: u64, shared: bool, keys: &[(&str, &str)]) -> Ref {
        let sr = self.sr_row(name, kind, size, shared, keys);
        let hosts = if shared { self.hosts.clone() } else { self.hosts.first().cloned().into_iter().collect() };
        hosts.iter().for_each(|host| self.pbd(host, &sr));
        sr
    }

    fn sr_row(&mut self, name: &str, kind: &str, size: u64, shared: bool, keys: &[(&str, &str)]) -> Ref {
        let keys: serde_json::Map<String, Value> = keys.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let sr = self.db.create(
            "SR",
            [
                ("name_label", json!(name)),
                ("type", json!(kind)),
                ("content_type", json!(if kind == "iso" { "iso" } else { "user" })),
                ("shared", json!(shared)),
                ("physical_size", json!(size)),
                ("other_config", Value::Object(keys)),
            ],
        );
        let uuid = self.db.text("SR", &sr, "uuid").unwrap_or_default().to_owned();
        self.world.sizes.insert(uuid, size);
        sr
    }

    fn pbd(&mut self, host: &Ref, sr: &Ref) {
        self.db.create("PBD", [("host", json!(host)), ("SR", json!(sr)), ("currently_attached", json!(true))]);
    }

    fn disk(&mut self, name: &str, sr: &Ref, size: u64, format: Format, blocks: &[u64]) -> Ref {
        let inflated = format == Format::Raw || vdi::thick(self.db, sr);
        // In a repository of ISOs each disk is a file, whose name a scan gives to its row (xapi.md 10).
        let file = self.db.text("SR", sr, "content_type").is_ok_and(|content| content == "iso");
        let name_of_file = file.then(|| name.to_owned());
        self.add_disk(
            name,
            sr,
            Node { virtual_size: size, inflated, format, name: name_of_file, ..Node::default() },
            blocks,
        )
    }

    fn add_disk(&mut self, name: &str, sr: &Ref, mut node: Node, blocks: &[u64]) -> Ref {
        node.sr = self.db.text("SR", sr, "uuid").unwrap_or_default().to_owned();
        let (uuid, node, used) = {
            let mut disks = self.world.disks();
            let uuid = disks.create(node);
            for block in blocks {
                // A block beyond the disk's end is a mistake in the world file that shows as zeros.
                disks.write(&uuid, *block, &pattern(1, *block)).unwrap_or_default();
            }
            let used = disks.utilisation(&uuid);
            let node = disks.get(&uuid).cloned().unwrap_or_default();
            (uuid, node, used)
        };
        let row = self.db.create("VDI", row::fields(sr, &uuid, &node, used));
        self.db.set("VDI", &row, "name_label", json!(name)).unwrap_or_default();
        row
    }

    fn defaults(&mut self) {
        for name in ["Windows 11", "Windows Server 2025", "Debian Bookworm 12", "Other install media"] {
            let disks = "<provision><disk device=\"0\" size=\"34359738368\" sr=\"\" bootable=\"true\" type=\"system\"/></provision>";
            let keys = BTreeMap::from([
                ("disks".to_owned(), disks.to_owned()),
                ("default_template".to_owned(), "true".to_owned()),
            ]);
            let row = Template { name: name.to_owned(), disks_gib: vec![], network: false, other_config: keys };
            self.template(&row, true);
        }
        for (name, disks_gib, network) in
            [("packaging", vec![], true), ("with-disk", vec![16], true), ("no-network", vec![], false)]
        {
            self.template(
                &Template { name: name.to_owned(), disks_gib, network, other_config: BTreeMap::new() },
                false,
            );
        }
        let sr = self.default.clone();
        self.disk("win11-24h2", &sr, 32 * GIB, Format::Vhd, &[0, 1, 512]);
    }

    fn template(&mut self, wanted: &Template, built_in: bool) {
        let metrics = self.db.create("VM_metrics", [("start_time", json!(NEVER))]);
        let memory = json!(4 * GIB);
        let vm = self.db.create(
            "VM",
            [
                ("name_label", json!(wanted.name)),
                ("is_a_template", json!(true)),
                ("is_default_template", json!(built_in)),
                ("power_state", json!("Halted")),
                ("domid", json!(-1)),
                ("metrics", json!(metrics)),
                ("other_config", json!(wanted.other_config)),
                ("memory_static_max", memory.clone()),
                ("memory_dynamic_max", memory.clone()),
                ("memory_dynamic_min", memory),
                ("memory_static_min", json!(2 * GIB)),
                ("VCPUs_max", json!(2)),
                ("VCPUs_at_startup", json!(2)),
                ("actions_after_shutdown", json!("destroy")),
                ("actions_after_reboot", json!("restart")),
                ("actions_after_crash", json!("restart")),
                ("HVM_boot_policy", json!("BIOS order")),
                ("HVM_boot_params", json!({"order": "dc", "firmware": "uefi"})),
                ("platform", json!({"device-model": "qemu-upstream-uefi", "secureboot": "auto", "viridian": "true"})),
                ("has_vendor_device", json!(false)),
                ("domain_type", json!("hvm")),
            ],
        );
        for (device, size) in wanted.disks_gib.iter().enumerate() {
            let sr = self.default.clone();
            let disk = self.disk(&format!("{} {device}", wanted.name), &sr, size * GIB, Format::Vhd, &[]);
            let fields = [
                ("VM", json!(vm)),
                ("VDI", json!(disk)),
                ("userdevice", json!(device.to_string())),
                ("bootable", json!(device == 0)),
                ("mode", json!("RW")),
                ("type", json!("Disk")),
            ];
            self.db.create("VBD", fields);
        }
        if wanted.network {
            let fields = [
                ("VM", json!(vm)),
                ("network", json!(self.network)),
                ("device", json!("0")),
                ("MAC", json!(made_up_mac())),
                ("MTU", json!(1500)),
                ("MAC_autogenerated", json!(true)),
            ];
            self.db.create("VIF", fields);
        }
    }
}
