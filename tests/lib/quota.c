/* Preloaded: while the file $QUOTA_USED_UP exists no file below $QUOTA_OF grows, as for
 * a user whose quota there is used up. What is written over has its blocks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int grows(int fd, off_t end)
{
    const char *top = getenv("QUOTA_OF"), *flag = getenv("QUOTA_USED_UP");
    char link[64], path[PATH_MAX];
    struct stat st;
    ssize_t n;

    if (!top || !flag || access(flag, F_OK) || fstat(fd, &st) || !S_ISREG(st.st_mode))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        return 0;
    path[n] = 0;
    return !strncmp(path, top, strlen(top)) && end > st.st_size;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t n)
{
    if (grows(fd, lseek(fd, 0, SEEK_CUR) + (off_t)n)) {
        errno = EDQUOT;
        return -1;
    }
    return NEXT(write)(fd, data, n);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    if (grows(fd, at + (off_t)n)) {
        errno = EDQUOT;
        return -1;
    }
    return NEXT(pwrite64)(fd, data, n, at);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    return pwrite64(fd, data, n, at);
}

int posix_fallocate64(int fd, off64_t at, off64_t n)
{
    return grows(fd, at + n) ? EDQUOT : NEXT(posix_fallocate64)(fd, at, n);
}

int posix_fallocate(int fd, off_t at, off_t n)
{
    return posix_fallocate64(fd, at, n);
}
