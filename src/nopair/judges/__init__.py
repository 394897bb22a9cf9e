"""Judges: pixels and questions in, differentiable Yes-No log-odds out.

Knows vision-language models and how each family wants its images and prompts. Refuses to know how an edit was made and
what a loss does with the log-odds: losses live in `nopair.method`.

    base             the protocol
    questions        what is asked, as versioned data
    wordings         the same questions in other words, to measure a judge with
    load             a judge of any family, from an ordinary Hugging Face folder
    vision_language  what is the same in every family, and the protocol of what is not
    prompts          from a question's words to rows of token ids
    tokens           which tokens mean Yes and No
    folder           the parts of a checkpoint folder, and every way it can be broken
    normalise        the end of every image processor, and the check that the rest is as expected
    resample         Pillow's resampling, differentiable
    internvl         InternVL3 and InternVL3.5
    qwen_vl          Qwen2.5-VL and Qwen3-VL
    smolvlm          SmolVLM (idefics3) and SmolVLM2
    llava_onevision  LLaVA-OneVision
    preprocess       its image processor, differentiable
    writer           a judge's model that answers in words
    ensemble         several judges as one
    scripted         a judge in closed form, for tests and first steps
"""
