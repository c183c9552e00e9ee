"""Model hubs: what they have, and how it comes here, into the hubs' own caches.

`repositories` looks, `choosing` says what may be taken, `downloads` fetches it in processes of their
own, `huggingface` and `modelscope` speak to the hubs through their own clients.
"""
