/* jobs.c - work beside the main thread: a queue of jobs and two threads that take the oldest first. Users: pictures ahead of the step
 * (models/qwen_picture.c) and files written behind it (writing.c).
 *
 * A job gets a context of plain memory. Tensors' objects, the step arena and the tape belong to the main thread: a job reads or writes the
 * bytes of a tensor that the main thread holds for it, and touches neither counts nor objects. Its kernels run on its own thread alone:
 * two teams of threads on the same cores would wait for each other. Whoever waits for a job that nobody has begun runs it himself, so no
 * result depends on whether there are threads.
 *
 * The threads end in sz_jobs_end, before the library is unloaded. Leaves out: priorities, jobs that start jobs. */
#include "io.h"
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 2 };       /* one can write a checkpoint for minutes while the other reads pictures */

enum state { WAITING, RUNNING, DONE };

struct sz_job {
    enum state state;
    int rc;
    char message[1024];
    int (*run)(void *context);
    void (*dispose)(void *context);
    void *context;
    sz_job *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t added = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static sz_job *oldest, *newest;
static pthread_t threads[THREADS];
static int started, idle;
static bool leaving;

static sz_job *take(sz_job *wanted)     /* out of the queue; NULL: the oldest. lock is held */
{
    sz_job *before = NULL, *j = oldest;
    while (j && wanted && j != wanted) before = j, j = j->next;
    if (!j) return NULL;
    if (before) before->next = j->next;
    else oldest = j->next;
    if (newest == j) newest = before;
    j->state = RUNNING;
    return j;
}

static void run(sz_job *j)              /* lock is not held */
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
        sz_job *j = take(NULL);
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

/* lock is held. Signals are the main thread's. Without a thread the job waits for the one who wants it. */
static void start_thread(void)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&threads[started], NULL, work, NULL) == 0) started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
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
    if (at_once) {
        run(j);
        return j;
    }
    pthread_mutex_lock(&lock);
    if (newest) newest->next = j;
    else oldest = j;
    newest = j;
    if (!idle && started < THREADS) start_thread();
    pthread_cond_signal(&added);
    pthread_mutex_unlock(&lock);
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
    pthread_mutex_lock(&lock);
    if (j->state == WAITING) {
        take(j);
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
    if (j->state == WAITING) take(j);
    else while (j->state != DONE) pthread_cond_wait(&ended, &lock);
    pthread_mutex_unlock(&lock);
    j->dispose(j->context);
    free(j);
}

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
