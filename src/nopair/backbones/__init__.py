"""Base models behind one protocol.

Knows how each family of text-to-image transformers encodes prompts and images, tells time, attaches a reference image,
and is read from and written to disk; and how one base plays student, teacher and fake score model. Refuses to know
losses, schedules, optimisers, data and judges.

    base              the protocol
    load              a base of whatever family a folder holds
    zimage            the Z-Image family, from an ordinary diffusers folder
    zimage_reference  two ways in which transformers of that family are given a reference
    flux2             the FLUX.2 klein family, likewise
    sd3               the Stable Diffusion 3 family, likewise
    qwen_image        the Qwen-Image family, likewise
    folder            reading such a folder, and saying what is wrong with it
    authors           reading the student that the authors of NP-Edit publish
    roles             student, teacher and fake: full copies, or adapters on one shared transformer
    adapters          writing a student's adapter as the LoRA file that diffusers loads
    fake              a backbone of a few thousand weights, for tests
"""
