"""Whether the CPU is fully usable: threads, instructions, clocks."""

from edgelm.devices.checks.context import Context
from edgelm.devices.checks.verdict import Verdict, ok, unknown, warning

# Instructions for dot products of 8-bit numbers, which int4 and int8 kernels use: their names in
# /proc/cpuinfo and common spellings.
_DOT_PRODUCTS = {
    "x86": {"avx512vnni", "avxvnni", "vnni"},
    "arm": {"asimddp", "dotprod"},
}
_X86 = ("x86_64", "amd64", "i686")
_FREQUENCIES = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
# With these drivers the governor `powersave` follows the load, as `schedutil` does elsewhere.
_FLOATING_DRIVERS = ("intel_pstate", "amd-pstate", "amd-pstate-epp")


def threads(context: Context) -> Verdict | None:
    """Whether affinity and control group let this process use all cores."""
    cpu, bound = context.machine.cpu, context.probes.threads()
    if cpu.usable >= cpu.cores:
        return ok(f"all {cpu.cores} cores can be used")
    if cpu.usable < bound:
        return warning(
            f"a control group limits this process to the time of {cpu.usable} threads on {bound}",
            why="threads beyond the limit are paused in the middle of a matrix product, and all "
            "others wait for them",
            fix=f"run with --threads {cpu.usable}, or raise the container's limit (--cpus)",
        )
    return warning(
        f"this process can use only {cpu.usable} threads, the machine has {cpu.cores} cores",
        why="decoding on the CPU needs several cores to read memory at its full speed",
        fix="start it without taskset, or without the container's --cpuset-cpus",
    )


def instructions(context: Context) -> Verdict | None:
    """Whether the CPU has instructions for 8-bit dot products."""
    isa = {name.lower().replace("_", "").replace("-", "") for name in context.machine.cpu.isa}
    if not isa:
        return unknown(
            "which instructions the CPU has",
            why=context.unread("processor"),
            fix="`lscpu` lists them as flags: avx2, avx_vnni or avx512_vnni on x86, asimddp on Arm",
        )
    x86 = context.machine.system.split()[-1].lower() in _X86
    found = isa & _DOT_PRODUCTS["x86" if x86 else "arm"]
    if found:
        return ok(f"the CPU has 8-bit dot products ({', '.join(sorted(found))})")
    lacking = ("VNNI" if "avx2" in isa else "AVX2") if x86 else "dotprod"
    return warning(
        f"{context.machine.cpu.name} has no {lacking}",
        why="int4 and int8 bundles compute 8-bit dot products, which take several instructions "
        "without it",
        fix="nothing to install: compare --precision int4, int8 and fp32 with edge-bench on this "
        "machine before you choose",
    )


def governor(context: Context) -> Verdict | None:
    """Whether the CPU's clock is kept low."""
    policies = [path.parent for path in context.probes.glob(_FREQUENCIES)]
    if not policies:
        return None  # virtual machines and most containers
    held = sum((path / "scaling_governor").read_text().strip() == "powersave" for path in policies)
    driver = (policies[0] / "scaling_driver").read_text().strip()
    if not held:
        return ok(f"no CPU is kept at its lowest clock ({driver})")
    if driver in _FLOATING_DRIVERS:
        return _preference(policies[0].joinpath("energy_performance_preference").read_text())
    return warning(
        f"the governor of {held} of {len(policies)} CPUs is powersave",
        why=f"with the driver {driver} it keeps them at their lowest clock",
        fix="echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    )


def _preference(preference: str) -> Verdict:
    preference = preference.strip()
    if preference != "power":
        return ok(f"the CPU's clock follows the load, with the preference {preference}")
    return warning(
        "the CPU is set to save power",
        why="its clock rises late and stays below the maximum",
        fix="powerprofilesctl set balanced (or performance)",
    )
