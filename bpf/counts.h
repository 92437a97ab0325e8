/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is counted per device: in which slot, found by its number. When to count is the callers'. */
#ifndef LLMIO_COUNTS_H
#define LLMIO_COUNTS_H

/* Slots that others may take between a look at control.slots_taken and the next one. */
#define SLOT_RIVALS 8

/* The slot of a device in device_counts, claimed at first sight; 0 when all are taken. */
GLOBAL __u32 claim_slot(__u32 device)
{
	__u32 *found = bpf_map_lookup_elem(MAP(device_slots), &device), slot = control.slots_taken;

	if (found)
		return *found;
	for (int i = 0; i < SLOT_RIVALS; i++) {
		slot++;
		if (slot >= DEVICES_MAX)
			return 0;
		if (bpf_map_update_elem(MAP(slot_devices), &slot, &device, BPF_NOEXIST))
			continue;
		control.slots_taken = slot;
		/* If the same device was faster on another CPU, this slot stays empty. */
		bpf_map_update_elem(MAP(device_slots), &device, &slot, BPF_NOEXIST);
		break;
	}
	found = bpf_map_lookup_elem(MAP(device_slots), &device);
	return found ? *found : 0;
}

static __always_inline struct device_counts *counts_of(__u32 slot)
{
	return bpf_map_lookup_elem(MAP(device_counts), &slot);
}

#endif
