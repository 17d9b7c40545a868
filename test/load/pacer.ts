/** The pacer of `sluice bench`, so that both make the same load at a fixed rate. */
import type * as pacer from '../../packages/server/src/cli/pacer.js'

export const { nowMs, pace } = (await import(
  new URL('./cli/pacer.js', import.meta.resolve('@sluice/server')).href
)) as typeof pacer
