"""Model classes for context parallelism, as SGLang's external model package takes them.

SGLang imports every module here and enters its ``EntryClass`` under the class's name, before its
own of that name. Nothing else imports them.
"""
