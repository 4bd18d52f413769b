"""Training recipe of the small model that ships with Edgefill.

For: turning two shards of openly licensed pictures into a diffusers folder that paints named
objects into holes and completes backgrounds. The modules, bottom to top:

    vocabulary   nouns, colours, and the sentences that name them
    data         shards in, decoded sprites and photographs out
    backdrop     photographs, walls, gradients, patterns
    hole         masks round an object, or free
    compose      random composites of these, seeded
    model        the networks, their sizes, and saving them as a diffusers folder
    pool         latents of composites, refreshed while training
    objective    noise levels, loss weights, the loss
    pace         learning rate and moving average by samples done
    checkpoint   atomic, complete training state
    trainer      one training step, and all that a resume needs
    train        trains UNet and text encoder (command line)
    vae          trains the autoencoder (command line)
    evaluate     contact sheets and figures (command line)

May import: torch, diffusers, transformers, numpy, cv2, PIL. Imported by nothing else in the house:
neither `engine` nor `service` ever needs it.
"""
