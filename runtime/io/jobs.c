/* jobs.c - background work: a queue of jobs, and two threads that run the oldest first. Used to
 * prefetch images (the models' image processors) and to write files after a step (writing.c).
 *
 * A job gets a context of plain memory. Tensor objects, the step arena and the tape belong to the
 * main thread: a job may read or write the bytes of a tensor that the main thread keeps alive for
 * it, but it must not touch reference counts or objects. Its kernels run on its own thread alone,
 * because two thread teams on the same cores would wait for each other. If the main thread waits
 * for a job that has not started, it runs the job itself, so no result depends on whether there are
 * threads.
 *
 * The threads end in sz_jobs_end, before the library is unloaded.
 * Leaves out: priorities, jobs that start jobs.
 */
#include "io.h"
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 2 }; /* one may write a checkpoint for minutes: the other reads images */

enum state { WAITING, RUNNING, DONE };

struct sz_job {
    enum state state;
    int rc;
    char message[1024]; /* if rc is not 0 */
    int (*run)(void *context);
    void (*dispose)(void *context);
    void *context;
    sz_job *next;
};

/* The lock protects all of this, and the state of each job. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t added = PTHREAD_COND_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static sz_job *oldest, *newest;
static pthread_t threads[THREADS];
static int started, idle;
static atomic_bool leaving;

/* Takes `wanted`, or the oldest job if it is NULL, out of the queue; NULL if it is not there. The
 * caller holds the lock. */
static sz_job *dequeue(sz_job *wanted)
{
    sz_job *previous = NULL;
    sz_job *j = oldest;
    while (j && wanted && j != wanted) {
        previous = j;
        j = j->next;
    }
    if (!j) return NULL;

    if (previous) previous->next = j->next;
    else oldest = j->next;
    if (newest == j) newest = previous;
    j->state = RUNNING;
    return j;
}

/* Runs a job. The caller does not hold the lock. */
static void run(sz_job *j)
{
    int rc = j->run(j->context);
    pthread_mutex_lock(&lock);
    j->rc = rc;
    if (rc != 0) snprintf(j->message, sizeof j->message, "%s", sz_last_error());
    j->state = DONE;
    pthread_cond_broadcast(&ended);
    pthread_mutex_unlock(&lock);
}

static void *work(void *unused)
{
    (void)unused;
    omp_set_num_threads(1);
    pthread_mutex_lock(&lock);
    for (;;) {
        /* Run the oldest job; leave only when there is none. */
        sz_job *j = dequeue(NULL);
        if (j) {
            pthread_mutex_unlock(&lock);
            run(j);
            pthread_mutex_lock(&lock);
        } else if (leaving) {
            break;
        } else {
            idle++;
            pthread_cond_wait(&added, &lock);
            idle--;
        }
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* Starts a thread that takes no signals, which are the main thread's. If that fails, each job runs
 * when the main thread waits for it. The caller holds the lock. */
static void start_thread(void)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&threads[started], NULL, work, NULL) == 0) started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void enqueue(sz_job *j)
{
    pthread_mutex_lock(&lock);
    if (newest) newest->next = j;
    else oldest = j;
    newest = j;
    if (!idle && started < THREADS) start_thread();
    pthread_cond_signal(&added);
    pthread_mutex_unlock(&lock);
}

sz_job *sz_job_start(int (*run_job)(void *), void (*dispose)(void *), void *context, bool at_once)
{
    sz_job *j = calloc(1, sizeof *j);
    if (!j) {
        dispose(context);
        return sz_null("out of memory");
    }
    j->run = run_job;
    j->dispose = dispose;
    j->context = context;
    if (at_once) run(j);
    else enqueue(j);
    return j;
}

void *sz_job_context(sz_job *j) { return j->context; }

int sz_job_done(sz_job *j)
{
    pthread_mutex_lock(&lock);
    int done = j->state == DONE;
    pthread_mutex_unlock(&lock);
    return done;
}

int sz_job_wait(sz_job *j)
{
    /* A job that has not started is run here. */
    pthread_mutex_lock(&lock);
    if (j->state == WAITING) {
        dequeue(j);
        pthread_mutex_unlock(&lock);
        run(j);
        pthread_mutex_lock(&lock);
    }
    while (j->state != DONE) pthread_cond_wait(&ended, &lock);
    pthread_mutex_unlock(&lock);
    return j->rc == 0 ? 0 : sz_fail("%s", j->message);
}

void sz_job_free(sz_job *j)
{
    if (!j) return;
    pthread_mutex_lock(&lock);
    if (j->state == WAITING) dequeue(j);
    else
        while (j->state != DONE) pthread_cond_wait(&ended, &lock);
    pthread_mutex_unlock(&lock);
    j->dispose(j->context);
    free(j);
}

bool sz_jobs_are_leaving(void) { return leaving; }

void sz_jobs_end(void)
{
    pthread_mutex_lock(&lock);
    leaving = true;
    pthread_cond_broadcast(&added);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    started = 0;
    leaving = false;
}
