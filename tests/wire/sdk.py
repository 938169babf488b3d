"""The official SDK for Python against a simulated pool: argv is the pool's URL, user and password."""
import sys
import XenAPI

session = XenAPI.Session(sys.argv[1], ignore_ssl=True)
session.xenapi.login_with_password(sys.argv[2], sys.argv[3], "1.0", "sdk")
x = session.xenapi

pool = x.pool.get_all_records()
(pool_record,) = pool.values()
sr = pool_record["default_SR"]
templates = {
    ref: vm
    for ref, vm in x.VM.get_all_records().items()
    if vm["is_a_template"] and not vm["is_default_template"] and not vm["is_control_domain"]
}
disks_of = lambda vm: [b for b in vm["VBDs"] if x.VBD.get_type(b) == "Disk"]
template = next(ref for ref, vm in templates.items() if not disks_of(vm) and vm["VIFs"])
source = next(ref for ref, vdi in x.VDI.get_all_records().items() if vdi["SR"] == sr and vdi["managed"] and not vdi["VBDs"])


def wait(task):
    """Watches events until the task ends."""
    token = ""
    while True:
        batch = getattr(x.event, "from")(["task/" + task], token, 10.0)
        token = batch["token"]
        for event in batch["events"]:
            if event["operation"] != "del" and event["snapshot"]["status"] != "pending":
                assert event["snapshot"]["status"] == "success", event["snapshot"]["error_info"]
                return event["snapshot"]["result"].replace("<value>", "").replace("</value>", "")


snapshot = x.VDI.snapshot(source)
assert x.VDI.get_is_a_snapshot(snapshot) and x.VDI.get_snapshot_of(snapshot) == source
disk = wait(x.Async.VDI.clone(snapshot))
x.VDI.set_name_label(disk, "made by the SDK")
assert isinstance(x.VDI.get_virtual_size(disk), str)

vm = x.VM.clone(template, "made by the SDK")
x.VM.set_is_a_template(vm, False)
vbd = x.VBD.create({
    "VM": vm, "VDI": disk, "userdevice": "0", "bootable": True, "mode": "RW", "type": "Disk", "empty": False,
    "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
})
wait(x.Async.VM.start(vm, False, False))
assert x.VM.get_power_state(vm) == "Running"

# The tools come up in the guest: only then does it hear a clean shutdown.
token, metrics = "", None
while metrics is None or not metrics["PV_drivers_detected"] or "feature-shutdown" not in metrics["other"]:
    batch = getattr(x.event, "from")(["vm_guest_metrics"], token, 20.0)
    token = batch["token"]
    current = x.VM.get_guest_metrics(vm)
    for event in batch["events"]:
        if event["ref"] == current and event["operation"] != "del":
            metrics = event["snapshot"]
x.VM.clean_shutdown(vm)
assert x.VM.get_power_state(vm) == "Halted"

try:
    x.VM.start(vm, False)
    raise SystemExit("a call that lacks a parameter was accepted")
except XenAPI.Failure as failure:
    assert failure.details == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", "3", "2"], failure.details

x.VM.destroy(vm)
x.VDI.destroy(disk)
x.VDI.destroy(snapshot)
try:
    x.VDI.get_record(disk)
    raise SystemExit("a destroyed disk is still there")
except XenAPI.Failure as failure:
    assert failure.details == ["HANDLE_INVALID", "VDI", disk], failure.details
x.session.logout()
print("whole life done")
