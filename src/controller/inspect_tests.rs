//! Each way in which what is named can be wrong, on small pools made here.

use super::*;
use crate::xapi::model::{Host, Network, Pbd, Sm, Vbd};

/// References are the uuids with `r-` before them.
pub fn r(uuid: &str) -> Ref {
    Ref(format!("r-{uuid}"))
}

pub fn table<T: Row>(rows: Vec<T>) -> Arc<crate::xapi::view::Table<T>> {
    Arc::new(rows.into_iter().map(|row| (r(row.uuid()), row)).collect())
}

fn sr(uuid: &str, name: &str, kind: &str, content_type: &str) -> Sr {
    let content_type = content_type.to_owned();
    Sr {
        uuid: uuid.into(),
        name_label: name.into(),
        kind: kind.into(),
        content_type,
        physical_size: 10,
        physical_utilisation: 4,
        ..Sr::default()
    }
}

fn pbd(uuid: &str, host: &str, sr: &str) -> Pbd {
    Pbd { uuid: uuid.into(), host: r(host), sr: r(sr), currently_attached: true }
}

pub fn vdi(uuid: &str, name: &str, sr: &str) -> Vdi {
    let kind = "user".to_owned();
    Vdi {
        uuid: uuid.into(),
        name_label: name.into(),
        sr: r(sr),
        managed: true,
        kind,
        on_boot: "persist".into(),
        ..Vdi::default()
    }
}

fn template_vm(uuid: &str, name: &str) -> Vm {
    let card = vec![r("vif")];
    Vm { uuid: uuid.into(), name_label: name.into(), is_a_template: true, vifs: card, ..Vm::default() }
}

/// A small pool: `fast` for disks and `isos` on both hosts, `local` of a driver that cannot clone.
fn view() -> View {
    let sm = |kind: &str, features: &[&str]| Sm {
        uuid: format!("sm-{kind}"),
        kind: kind.into(),
        features: features.iter().map(|f| ((*f).to_owned(), 1)).collect(),
    };
    View {
        synced: true,
        hosts: table(vec![
            Host { uuid: "h1".into(), enabled: true, ..Host::default() },
            Host { uuid: "h2".into(), enabled: true, ..Host::default() },
        ]),
        srs: table(vec![
            sr("fast", "Fast", "lvmoiscsi", "user"),
            sr("other", "Other", "ext", "user"),
            sr("isos", "ISOs", "iso", "iso"),
            sr("tools", "Tools", "iso", "iso"),
            sr("raw", "Raw", "rawhba", "user"),
        ]),
        pbds: table(vec![
            pbd("p1", "h1", "fast"),
            pbd("p2", "h2", "isos"),
            pbd("p3", "h1", "raw"),
            pbd("p4", "h1", "tools"),
            pbd("p5", "h1", "other"),
        ]),
        sms: table(vec![
            sm("lvmoiscsi", &["VDI_SNAPSHOT", "VDI_CLONE"]),
            sm("ext", &["VDI_SNAPSHOT", "VDI_CLONE"]),
            sm("rawhba", &["VDI_SNAPSHOT"]),
        ]),
        vms: table(vec![template_vm("t1", "Packaging")]),
        vdis: table(vec![vdi("os", "win11", "fast"), vdi("tools-1", "guest-tools.iso", "isos")]),
        ..View::default()
    }
}

fn reason<T>(result: Result<T, Trouble>) -> (Reason, String) {
    match result {
        Ok(_) => panic!("that was found"),
        Err(trouble) => (trouble.reason, trouble.message),
    }
}

/// The view with another table of machines.
fn with_vms(vms: Vec<Vm>) -> View {
    View { vms: table(vms), ..view() }
}

fn with_vdis(vdis: Vec<Vdi>) -> View {
    View { vdis: table(vdis), ..view() }
}

#[test]
fn a_template_is_found_by_name_and_by_uuid() {
    for wanted in ["Packaging", "t1"] {
        assert_eq!(template(&view(), wanted).unwrap().0, r("t1"));
    }
}

#[test]
fn each_way_in_which_a_template_is_wrong_has_its_reason() {
    let (why, text) = reason(template(&view(), "packaging"));
    assert_eq!(why, Reason::TemplateNotFound);
    assert!(text.contains("did you mean 'Packaging'?"), "{text}");
    assert!(!reason(template(&view(), "nonsense")).1.contains("did you mean"));

    let two = with_vms(vec![template_vm("t1", "T"), template_vm("t2", "T")]);
    let (why, text) = reason(template(&two, "T"));
    assert_eq!(why, Reason::TemplateAmbiguous);
    assert!(text.contains("t1, t2"), "{text}");
    assert!(template(&two, "t2").is_ok());

    let built_in = with_vms(vec![Vm { is_default_template: true, ..template_vm("t", "Windows 11") }]);
    assert_eq!(reason(template(&built_in, "Windows 11")).0, Reason::TemplateNotCustom);
    let bare = with_vms(vec![Vm { vifs: vec![], ..template_vm("t", "T") }]);
    assert_eq!(reason(template(&bare, "T")).0, Reason::TemplateWithoutNetwork);
    // A snapshot of a machine, and a machine, are no templates to a user.
    let others = with_vms(vec![
        Vm { is_a_snapshot: true, ..template_vm("t1", "T") },
        Vm { is_a_template: false, ..template_vm("t2", "T") },
    ]);
    assert_eq!(reason(template(&others, "T")).0, Reason::TemplateNotFound);
}

#[test]
fn a_template_may_have_a_dvd_drive_but_no_disk() {
    let drive = |kind| Vbd { uuid: "b".into(), kind, ..Vbd::default() };
    let vm = || Vm { vbds: vec![r("b")], ..template_vm("t", "T") };
    let with = |kind| View { vbds: table(vec![drive(kind)]), ..with_vms(vec![vm()]) };
    assert!(template(&with(VbdType::Cd), "T").is_ok());
    assert_eq!(reason(template(&with(VbdType::Disk), "T")).0, Reason::TemplateHasDisks);
}

#[test]
fn a_custom_template_hides_a_built_in_one_of_its_name() {
    let both = with_vms(vec![Vm { is_default_template: true, ..template_vm("t1", "T") }, template_vm("t2", "T")]);
    assert_eq!(template(&both, "T").unwrap().0, r("t2"));
}

#[test]
fn each_way_in_which_storage_is_wrong_has_its_reason() {
    assert_eq!(storage(&view(), "Fast").unwrap().0, r("fast"));
    assert_eq!(storage(&view(), "fast").unwrap().0, r("fast"), "by uuid");
    let (why, text) = reason(storage(&view(), "FAST"));
    assert_eq!(why, Reason::StorageNotFound);
    assert!(text.contains("did you mean 'Fast'?"), "{text}");
    assert_eq!(reason(storage(&view(), "ISOs")).0, Reason::StorageIsISO);
    assert_eq!(reason(storage(&view(), "Raw")).0, Reason::StorageUnsuitable);
    let detached = View { pbds: table(vec![Pbd { currently_attached: false, ..pbd("p1", "h1", "fast") }]), ..view() };
    assert_eq!(reason(storage(&detached, "Fast")).0, Reason::StorageDetached);
    let local = |uuid| sr(uuid, "Local storage", "ext", "user");
    let two = View { srs: table(vec![local("l1"), local("l2")]), ..view() };
    let (why, text) = reason(storage(&two, "Local storage"));
    assert!(why == Reason::StorageAmbiguous && text.contains("l1, l2"), "{text}");
}

#[test]
fn room_and_thickness_are_the_repositorys() {
    let fast = facts(&view(), &r("fast")).unwrap();
    assert_eq!((fast.free, fast.thick), (6, true));
    assert!(!facts(&view(), &r("other")).unwrap().thick);
}

#[test]
fn the_tools_are_found_by_mark_then_by_name_and_never_old_ones() {
    let iso = |uuid: &str, name: &str, sr: &str| vdi(uuid, name, sr);
    let found = |vdis: Vec<Vdi>| tools_iso(&with_vdis(vdis), None).map(|(r, _)| r.0);
    assert_eq!(found(vec![iso("a", "guest-tools.iso", "isos")]).unwrap(), "r-a");
    let marked = Vdi { is_tools_iso: true, ..iso("b", "my.iso", "isos") };
    assert_eq!(found(vec![iso("a", "guest-tools.iso", "isos"), marked]).unwrap(), "r-b");
    for unfit in [
        iso("a", "Old version of guest-tools.iso", "isos"),
        iso("a", "ubuntu.iso", "isos"),
        iso("a", "guest-tools.iso", "fast"),
        Vdi { missing: true, ..iso("a", "guest-tools.iso", "isos") },
        Vdi { managed: false, ..iso("a", "guest-tools.iso", "isos") },
        Vdi { is_tools_iso: true, ..iso("a", "Old version of guest-tools.iso", "isos") },
    ] {
        let why = found(vec![unfit.clone()]).unwrap_err().reason;
        assert_eq!(why, Reason::ToolsISONotFound, "{unfit:?}");
    }
    let unplugged = View { pbds: table(vec![]), ..view() };
    assert_eq!(reason(tools_iso(&unplugged, None)).0, Reason::ToolsISONotFound);
}

#[test]
fn the_tools_repository_goes_before_others() {
    let mut view = with_vdis(vec![vdi("a", "guest-tools.iso", "isos"), vdi("b", "xs-tools.iso", "tools")]);
    let tools = Sr { is_tools_sr: true, ..sr("tools", "Tools", "iso", "iso") };
    view.srs = table(vec![sr("isos", "ISOs", "iso", "iso"), tools]);
    assert_eq!(tools_iso(&view, None).unwrap().0, r("b"));
}

#[test]
fn a_named_iso_may_have_any_name_but_must_be_one_and_reachable() {
    let two = with_vdis(vec![vdi("a", "win.iso", "isos"), vdi("b", "win.iso", "tools"), vdi("c", "Mine.iso", "isos")]);
    assert_eq!(tools_iso(&two, Some("Mine.iso")).unwrap().0, r("c"));
    assert_eq!(tools_iso(&two, Some("b")).unwrap().0, r("b"));
    assert_eq!(reason(tools_iso(&two, Some("win.iso"))).0, Reason::ToolsISOAmbiguous);
    assert!(reason(tools_iso(&two, Some("mine.iso"))).1.contains("did you mean 'Mine.iso'?"));
    let unplugged = View { pbds: table(vec![]), ..two };
    let (why, text) = reason(tools_iso(&unplugged, Some("Mine.iso")));
    assert!(why == Reason::ToolsISONotFound && text.contains("attached to no host"), "{text}");
}

fn by_name(name: &str) -> DiskRef {
    DiskRef { uuid: None, name: Some(name.into()) }
}

fn by_uuid(uuid: &str) -> DiskRef {
    DiskRef { uuid: Some(uuid.into()), name: None }
}

#[test]
fn the_os_disk_is_looked_up_in_the_connectors_repository() {
    let find = |view: &View, wanted: DiskRef| os_disk(view, &r("fast"), &wanted);
    assert_eq!(find(&view(), by_name("win11")).unwrap().0, r("os"));
    assert_eq!(find(&view(), by_uuid("os")).unwrap().0, r("os"));
    assert_eq!(reason(find(&view(), by_uuid("nonsense"))).0, Reason::OSDiskNotFound);
    let (why, text) = reason(find(&view(), by_name("Win11")));
    assert!(why == Reason::OSDiskNotFound && text.contains("did you mean 'win11'?"), "{text}");

    let away = with_vdis(vec![vdi("os", "win11", "other")]);
    for wanted in [by_name("win11"), by_uuid("os")] {
        let (why, text) = reason(find(&away, wanted));
        assert_eq!(why, Reason::OSDiskOnOtherStorageRepository);
        assert!(text.contains("'Other'") && text.contains("'Fast'"), "{text}");
    }
    let two = with_vdis(vec![vdi("a", "win11", "fast"), vdi("b", "win11", "fast")]);
    assert_eq!(reason(find(&two, by_name("win11"))).0, Reason::OSDiskAmbiguous);
}

#[test]
fn snapshots_of_the_os_disk_and_hidden_nodes_do_not_make_its_name_ambiguous() {
    let snapshot = Vdi { is_a_snapshot: true, ..vdi("snap", "win11", "fast") };
    let hidden = Vdi { managed: false, ..vdi("node", "win11", "fast") };
    let find = |vdis| os_disk(&with_vdis(vdis), &r("fast"), &by_name("win11")).unwrap().0;
    assert_eq!(find(vec![vdi("os", "win11", "fast"), snapshot.clone(), hidden.clone()]), r("os"));
    // Alone it is found, so that its own gate can say what to do about it.
    assert_eq!(find(vec![snapshot, hidden]), r("snap"));
}

#[test]
fn whoever_may_write_to_the_os_disk_is_named() {
    let vbd =
        |uuid: &str, vm: &str, mode: &str| Vbd { uuid: uuid.into(), vm: r(vm), mode: mode.into(), ..Vbd::default() };
    let vm = |uuid: &str, power_state| Vm { uuid: uuid.into(), name_label: uuid.into(), power_state, ..Vm::default() };
    let view = View {
        vbds: table(vec![vbd("b1", "off", "RW"), vbd("b2", "reader", "RO"), vbd("b3", "writer", "RW")]),
        vms: table(vec![
            vm("off", PowerState::Halted),
            vm("reader", PowerState::Running),
            vm("writer", PowerState::Suspended),
        ]),
        ..view()
    };
    let os = os_disk_facts(&view, &Vdi { vbds: vec![r("b1"), r("b2"), r("b3")], ..vdi("os", "win11", "fast") });
    assert_eq!(os.writers, ["machine 'writer'"]);
    assert!(os.persist && os.managed && !os.snapshot);
}

#[test]
fn networks_are_found_in_the_order_asked_for() {
    let network = |uuid: &str, name: &str| Network { uuid: uuid.into(), name_label: name.into(), ..Network::default() };
    let view = View {
        networks: table(vec![
            network("n1", "LAN"),
            network("n2", "DMZ"),
            network("n3", "Twice"),
            network("n4", "Twice"),
        ]),
        ..view()
    };
    let find = |names: &[&str]| networks(&view, &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    assert_eq!(find(&["DMZ", "n1", "DMZ"]).unwrap(), [r("n2"), r("n1"), r("n2")]);
    assert_eq!(reason(find(&["LAN", "Twice"])).0, Reason::NetworkAmbiguous);
    assert_eq!(reason(find(&["lan"])).0, Reason::NetworkNotFound);
    assert!(reason(find(&["lan"])).1.contains("did you mean 'LAN'?"));
}

#[test]
fn one_enabled_host_must_see_disk_and_iso() {
    // `fast` is on h1 only, `isos` on h2 only.
    assert_eq!(reason(co_visible(&view(), &r("fast"), &r("isos"))).0, Reason::NoHostCanBoot);
    assert!(co_visible(&view(), &r("fast"), &r("tools")).is_ok());
    let resting = View { hosts: table(vec![Host { uuid: "h1".into(), enabled: false, ..Host::default() }]), ..view() };
    assert!(co_visible(&resting, &r("fast"), &r("tools")).is_err());
}
