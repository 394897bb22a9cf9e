"""Judges: pixels and questions in, differentiable Yes-No log-odds out.

Knows vision-language models and how each family wants its images and prompts. Refuses to know how an edit was made and
what a loss does with the log-odds: losses live in `nopair.method`.

    base             the protocol
    questions        what is asked, as versioned data
    llava_onevision  the LLaVA-OneVision family, from an ordinary Hugging Face folder
    preprocess       its image processor, differentiable
    tokens           which tokens mean Yes and No
    scripted         a judge in closed form, for tests and first steps
"""
