"""Whether the CPU can do what its data sheet says: threads, instructions, clocks."""

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, ok, unknown, warning

# Dot products of 8-bit numbers, which int4 and int8 weights are multiplied with, under the names
# of /proc/cpuinfo and their usual spellings.
_DOT_PRODUCTS = {
    "x86": {"avx512vnni", "avxvnni", "vnni"},
    "arm": {"asimddp", "dotprod"},
}
_X86 = ("x86_64", "amd64", "i686")
_FREQUENCIES = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
# Their governor `powersave` moves the clock with the load, as `schedutil` does elsewhere.
_FLOATING_DRIVERS = ("intel_pstate", "amd-pstate", "amd-pstate-epp")


def threads(context: Context) -> Verdict | None:
    """Whether this process may use all cores: affinity and control group."""
    cpu, bound = context.machine.cpu, context.probes.threads()
    if cpu.usable >= cpu.cores:
        return ok(f"all {cpu.cores} cores can be used")
    if cpu.usable < bound:
        return warning(
            f"a control group grants the time of {cpu.usable} threads on {bound} that can be used",
            why="threads beyond the grant are stopped in the middle of a matrix product, and all "
            "others wait for them",
            fix=f"--threads {cpu.usable}, or raise the container's limit (--cpus)",
        )
    return warning(
        f"this process may use {cpu.usable} threads on {cpu.cores} cores",
        why="decoding on the CPU needs several cores to read memory at its full speed",
        fix="start it without taskset, or without the container's --cpuset-cpus",
    )


def instructions(context: Context) -> Verdict | None:
    """Whether the CPU multiplies 8-bit numbers directly."""
    isa = {name.lower().replace("_", "").replace("-", "") for name in context.machine.cpu.isa}
    if not isa:
        return unknown("the CPU's instructions", why=context.unread("processor"))
    x86 = context.machine.system.split()[-1].lower() in _X86
    found = isa & _DOT_PRODUCTS["x86" if x86 else "arm"]
    if found:
        return ok(f"the CPU has 8-bit dot products ({', '.join(sorted(found))})")
    lacking = ("VNNI" if "avx2" in isa else "AVX2") if x86 else "dotprod"
    return warning(
        f"{context.machine.cpu.name} has no {lacking}",
        why="int4 and int8 bundles compute with 8-bit products, which take several instructions "
        "each without it",
        fix="nothing to install: compare --precision int4, int8 and fp32 with edge-bench on this "
        "machine before you choose",
    )


def governor(context: Context) -> Verdict | None:
    """Whether the CPU's clock is held down."""
    policies = [path.parent for path in context.probes.glob(_FREQUENCIES)]
    if not policies:
        return None  # virtual machines and most containers
    held = sum((path / "scaling_governor").read_text().strip() == "powersave" for path in policies)
    driver = (policies[0] / "scaling_driver").read_text().strip()
    if not held:
        return ok(f"no CPU is held at its lowest clock ({driver})")
    if driver in _FLOATING_DRIVERS:
        return _judge_preference(policies[0].joinpath("energy_performance_preference").read_text())
    return warning(
        f"the governor of {held} of {len(policies)} CPUs is powersave",
        why=f"with the driver {driver} it keeps them at their lowest clock",
        fix="echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    )


def _judge_preference(preference: str) -> Verdict:
    preference = preference.strip()
    if preference != "power":
        return ok(f"the CPU's clock follows the load, with the preference {preference}")
    return warning(
        "the CPU prefers saving power",
        why="its clock rises late and not to the top",
        fix="powerprofilesctl set balanced (or performance)",
    )
