/* threads.c - new threads take no signals: signals are the main thread's.
 *
 * The matrix products of oneDNN 2.6 keep data below their stack pointer. A signal handler that runs
 * on the same stack overwrites it: the product is wrong, or the heap is damaged. So the main thread
 * handles signals on a stack of their own (interrupt.c), and no other thread handles any. OpenMP
 * ends workers and makes new ones as it likes, so pthread_create itself is replaced, for this
 * program and every library in it.
 * Leaves out: programs that load the core without this host; they install no handlers either.
 * Sanitizers bring a pthread_create of their own, which stays.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

typedef int create_function(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

/* Signals that a thread's own instruction causes stay on. */
static void block_signals(sigset_t *before)
{
    static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT };
    sigset_t set;
    sigfillset(&set);
    for (unsigned i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&set, own[i]);
    pthread_sigmask(SIG_BLOCK, &set, before);
}

__attribute__((visibility("default"))) int pthread_create(pthread_t *thread,
                                                          const pthread_attr_t *attributes,
                                                          void *(*run)(void *), void *argument)
{
    create_function *create = (create_function *)dlsym(RTLD_NEXT, "pthread_create");
    sigset_t before;
    if (!create) return ENOSYS;
    /* A thread begins with the mask of the one that makes it. */
    block_signals(&before);
    int code = create(thread, attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

#endif
